// What the tests of the core share: a small model, tensors for it, and a backend of few lines.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "compute/backend/compute_backend.h"
#include "kv_service/core/put_session.h"
#include "kv_service/core/segment_store.h"

namespace fourierkv {

inline constexpr int kS = 128;
inline constexpr KvGeometry kSmall{.layers = 2, .kv_heads = 2, .head_dim = 8};

// A valid namespace of the small model.
CacheNamespace SmallNamespace();

// Its context, with the layout of a half spectral profile or exact only.
std::shared_ptr<const NamespaceContext> SmallContext(bool with_profile = true,
                                                     const std::string& tenant_salt = "");

// A profile of whole sequences for the small model: of T tokens the first 4 and the last 28 exact,
// half of the channels of the others 32 states if there are more than 32 of them.
CodecProfile SmallSequenceProfile();
std::shared_ptr<const NamespaceContext> SmallSequenceContext();

// Token ids that no other call of the same `rng` gave.
std::vector<uint32_t> RandomTokens(std::mt19937& rng, int64_t n);

// Smooth along time, so that it compresses: [kv_heads][tokens][head_dim] of one part.
std::vector<uint16_t> RandomPart(std::mt19937& rng, const KvGeometry& geometry, int tokens);

// The codec's reference behind the interface of a backend; attends to nothing. Counts calls.
class ReferenceBackend : public ComputeBackend {
 public:
  std::string name() const override { return "reference"; }
  absl::Status Encode(KvDtype dtype, std::span<EncodeJob> jobs) override;
  absl::Status Decode(KvDtype dtype, std::span<const DecodeJob> jobs) override;
  absl::Status Attend(const AttentionArgs& args) override;

  std::atomic<int> encode_calls{0};
  std::atomic<int> encode_jobs{0};
};

// Sealed blobs of one form with arbitrary payload, charged to `budget`, which must have room.
FormPtr MakeForm(const StoredSegment& segment, SegmentForm form, MemoryBudget& budget,
                 float relative_error = 0);

// A chain of segments with keys, without forms; `tokens` from position 0.
std::vector<StoredSegment> MakeChain(std::shared_ptr<const NamespaceContext> context,
                                     std::span<const uint32_t> tokens);

// The dense payload of one part, by (segment index, layer, part).
using PartSource = std::function<std::vector<uint16_t>(int64_t, int, Part)>;

// Sends every needed dense part of `session` in chunks of `chunk_bytes`; the first error ends it.
absl::Status SendAll(PutSession& session, const PartSource& source, int64_t chunk_bytes = 4096);

// One whole dense put of `tokens` from position 0.
absl::StatusOr<PutStats> PutAll(PutManager& puts, std::shared_ptr<const NamespaceContext> context,
                                const std::vector<uint32_t>& tokens, const PartSource& source,
                                int64_t keep_exact_from = 0);

std::span<const std::byte> AsBytes(const std::vector<uint16_t>& values);

// Flips one bit of a stored blob, as bad memory would.
void Damage(const BlobPtr& blob, size_t at);

// A store, its budget and a clock that stands until moved.
struct StoreFixture {
  explicit StoreFixture(int64_t budget_bytes = int64_t{64} << 20);

  std::vector<BlockKey> Keys(std::span<const StoredSegment> segments) const;
  // Forms of arbitrary payload for all of `segments`: EXACT, COMPACT (of full ones) or both.
  absl::StatusOr<CommitResult> Commit(std::vector<StoredSegment> segments, bool exact,
                                      bool compact);

  absl::Time now = absl::FromUnixSeconds(1'000'000);
  std::shared_ptr<MemoryBudget> budget;
  std::shared_ptr<StoreMetrics> metrics;
  SegmentStore store;
};

}  // namespace fourierkv
