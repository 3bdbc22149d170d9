// One put: from the plan over chunks in any order to an atomic commit.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/base/geometry.h"
#include "kv_service/core/patience.h"
#include "kv_service/core/put_plan.h"
#include "kv_service/core/segment_store.h"

namespace fourierkv {

class ComputeBackend;
class PartCollector;
class TieredStore;

struct PutStats {
  int64_t segments_stored = 0;
  int64_t segments_deduplicated = 0;
  int64_t bytes_received = 0;  // chunk payload
  int64_t exact_bytes = 0;     // of blobs handed to the store
  int64_t lossless_bytes = 0;
  int64_t compact_bytes = 0;
  int64_t archived_bytes = 0;
  int64_t bounded_segments = 0;  // whose exact data is kept only for the plan's max_relative_error
  int64_t encoded_dense_bytes = 0;
  double encode_seconds = 0;
  float max_relative_error = 0;  // over the compact blobs of this put; 0 if none
  // What all segments of the put, and everything before them, have reached: what the plan wanted,
  // or less if no tier offers that, or the one that does failed or was late.
  Durability durability = Durability::kMemory;
};

// One thread at a time. Holds the parent and the stored segments of its plan in the store until it
// ends. Destroyed without Commit, it leaves nothing behind. After an error of AddChunk the session
// goes on as if the call had not happened; except when a complete part was refused (values that are
// not finite, a damaged or foreign blob): then every later call returns that error again.
class PutSession {
 public:
  ~PutSession();
  PutSession(const PutSession&) = delete;
  PutSession& operator=(const PutSession&) = delete;

  const std::vector<PlannedSegment>& segments() const { return segments_; }
  int64_t needed_segments() const;

  // Bytes to send for one part of one segment of the plan; of lossless payload at most. Requires
  // indices in range.
  int64_t PartBytes(const PlannedSegment& segment, int layer, Part part) const;

  // `segment_index` is absolute; `offset` counts from the part's start; `checksum` is XXH3-64 of
  // `bytes`; `part_bytes` is the size of the part, which only lossless payload must tell (else 0
  // will do).
  //   InvalidArgument    segment not of this plan or not needed; layer or part unknown; empty
  //   chunk;
  //                      NaN, infinite or values beyond +-1e30; a blob of something else; a
  //                      part_bytes that cannot be, or is not that of earlier chunks
  //   OutOfRange         bytes beyond the part's end
  //   AlreadyExists      bytes that were received before
  //   DataLoss           wrong checksum, or a damaged blob
  //   ResourceExhausted  no memory left in the budget, or too many gaps between chunks
  //   FailedPrecondition after Commit
  absl::Status AddChunk(int64_t segment_index, int layer, Part part, int64_t offset,
                        std::span<const std::byte> bytes, uint64_t checksum,
                        int64_t part_bytes = 0);

  // Publishes everything at once. FailedPrecondition naming the first incomplete part (chunks may
  // still be added then); other errors end the session. For the durability of the plan it waits as
  // long as `tier_patience` lasts.
  absl::StatusOr<PutStats> Commit(const Patience& tier_patience = absl::InfiniteFuture());

 private:
  friend class PutManager;
  PutSession(SegmentStore* store, TieredStore* tiers, std::shared_ptr<std::atomic<int>> running);
  void Start(PutPlan plan, std::vector<PlannedSegment> segments, ComputeBackend& backend,
             const Patience& patience);
  absl::Status End(absl::Status why);  // frees everything; returns `why`, as do later calls

  SegmentStore* store_;
  TieredStore* tiers_;  // null: memory alone
  std::shared_ptr<std::atomic<int>> running_;
  Durability durability_ = Durability::kMemory;  // wanted
  int64_t tenant_limit_bytes_ = 0;
  absl::Duration ttl_ = absl::InfiniteDuration();
  Patience patience_ = absl::InfiniteFuture();
  int layers_ = 0;
  std::vector<PlannedSegment> segments_;
  SegmentPin pin_;
  TenantPledge pledge_;                       // of the room that it is known to need
  std::unique_ptr<PartCollector> collector_;  // null until started; refers to segments_
  absl::Status ended_;
  bool committed_ = false;
};

// Starts puts, a bounded number at a time. Thread safe. Store and backend must outlive it and its
// sessions.
class PutManager {
 public:
  PutManager(SegmentStore* store, ComputeBackend* backend, int max_sessions,
             TieredStore* tiers = nullptr);

  // InvalidArgument naming the field of the plan; FailedPrecondition if the parent is not stored
  // (any more) or its index or namespace does not fit; ResourceExhausted with max_sessions running,
  // or if what is known of its size does not fit beside what its tenant stores and is putting.
  // Looks into tiers for as long as `tier_patience` lasts. What the session does, its commit too,
  // ends as Patience::Check says when `patience` is over.
  absl::StatusOr<std::unique_ptr<PutSession>> Begin(
      PutPlan plan, const Patience& tier_patience = absl::InfiniteFuture(),
      const Patience& patience = absl::InfiniteFuture());

  int running() const { return running_->load(); }

 private:
  SegmentStore* store_;
  ComputeBackend* backend_;
  TieredStore* tiers_;
  int max_sessions_;
  std::shared_ptr<std::atomic<int>> running_;
};

}  // namespace fourierkv
