// One put: from the plan over chunks in any order to an atomic commit.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/base/geometry.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/cache_namespace.h"
#include "kv_service/core/segment_store.h"

namespace fourierkv {

class ComputeBackend;

inline constexpr int64_t kMaxPutSegments = 4096;
inline constexpr int64_t kMaxSegmentIndex = int64_t{1} << 20;

enum class PutPayload : uint8_t {
  kDense = 1,    // K and V as [kv_heads][tokens][head_dim] in the namespace's dtype
  kCompact = 2,  // whole compact blobs, headers included
};

struct PutPlan {
  std::shared_ptr<const NamespaceContext> context;
  std::optional<BlockKey> parent;  // nullopt iff first_segment_index = 0
  int64_t first_segment_index = 0;
  // From the start of the first segment. Not a multiple of S: the rest is the sequence's tail.
  std::vector<uint32_t> token_ids;
  PutPayload payload = PutPayload::kDense;
  // Full segments from this index on keep their exact form beside the compact one. Dense payload
  // only.
  int64_t keep_exact_from = 0;
};

struct PlannedSegment {
  BlockKey key;
  int64_t index = 0;
  int tokens = 0;
  bool tail = false;
  bool needed = false;      // its chunks must be sent
  bool keep_exact = false;  // forms that this put leaves behind
  bool keep_compact = false;
};

struct PutStats {
  int64_t segments_stored = 0;
  int64_t segments_deduplicated = 0;
  int64_t bytes_received = 0;  // chunk payload
  int64_t exact_bytes = 0;     // of exact blobs handed to the store
  int64_t compact_bytes = 0;   // of compact blobs handed to the store
  int64_t encoded_dense_bytes = 0;
  double encode_seconds = 0;
  float max_relative_error = 0;  // over the compact blobs of this put; 0 if none
};

// Which forms a put leaves behind: without a profile, segment 0 and tails are exact only; before
// `keep_exact_from` compact only; both from there on.
bool KeepsExact(const NamespaceContext& context, int64_t index, bool tail, int64_t keep_exact_from);
bool KeepsCompact(const NamespaceContext& context, int64_t index, bool tail);

// One thread at a time. Holds the parent and the stored segments of its plan in the store until it
// ends. Destroyed without Commit, it leaves nothing behind. After an error of AddChunk the session
// goes on as if the call had not happened; except when a complete part was refused (values that are
// not finite, a damaged or foreign compact blob): then every later call returns that error again.
class PutSession {
 public:
  ~PutSession();
  PutSession(const PutSession&) = delete;
  PutSession& operator=(const PutSession&) = delete;

  const std::vector<PlannedSegment>& segments() const;
  int64_t needed_segments() const;

  // Bytes to send for one part of one segment of the plan. Requires indices in range.
  int64_t PartBytes(const PlannedSegment& segment, int layer, Part part) const;

  // `segment_index` is absolute; `offset` counts from the part's start; `checksum` is XXH3-64 of
  // `bytes`.
  //   InvalidArgument    segment not of this plan or not needed; layer or part unknown; empty
  //   chunk;
  //                      NaN, infinite or too large values; a compact blob of something else
  //   OutOfRange         bytes beyond the part's end
  //   AlreadyExists      bytes that were received before
  //   DataLoss           wrong checksum, or a damaged compact blob
  //   ResourceExhausted  no memory left in the budget, or too many gaps in one part
  //   FailedPrecondition after Commit
  absl::Status AddChunk(int64_t segment_index, int layer, Part part, int64_t offset,
                        std::span<const std::byte> bytes, uint64_t checksum);

  // Publishes everything at once. FailedPrecondition naming the first incomplete part (chunks may
  // still be added then); other errors end the session.
  absl::StatusOr<PutStats> Commit();

 private:
  friend class PutManager;
  struct State;
  explicit PutSession(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
};

// Starts puts, a bounded number at a time. Thread safe. Store and backend must outlive it and its
// sessions.
class PutManager {
 public:
  PutManager(SegmentStore* store, ComputeBackend* backend, int max_sessions);

  // InvalidArgument naming the field of the plan; FailedPrecondition if the parent is not stored
  // (any more) or its index or namespace does not fit; ResourceExhausted with max_sessions running.
  absl::StatusOr<std::unique_ptr<PutSession>> Begin(PutPlan plan);

  int running() const { return running_->load(); }

 private:
  SegmentStore* store_;
  ComputeBackend* backend_;
  int max_sessions_;
  std::shared_ptr<std::atomic<int>> running_;
};

}  // namespace fourierkv
