// A cache that keeps its sink and its recent tokens exactly and everything between them compact.

#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/cache/fillable_kv_cache.h"
#include "compute/cache/sealed_segment.h"
#include "compute/cache/shared_bytes.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {

struct CompactCacheOptions {
  int64_t recent_window = 1024;  // W: at least so many of the last tokens stay exact; 0 to 2^20
  int64_t max_tokens = 0;        // 1 to kMaxCacheTokens
  KvDtype dtype = KvDtype::kBf16;
  // Segments in which any part of any layer has a larger measured error stay exact.
  float max_relative_error = std::numeric_limits<float>::infinity();
};

// InvalidArgument, naming the option, unless these are as CompactCacheOptions says.
absl::Status CheckCompactLimits(int64_t recent_window, int64_t max_tokens,
                                float max_relative_error);

// With segments of S tokens: segment 0 (the sink) is exact. Whenever Advance leaves more than W + S
// tokens behind the compact part, the oldest S of them are encoded as one segment, so that between
// W and W + S recent tokens are exact. A segment that cannot be encoded within max_relative_error
// is left exact where it is. Attention reads compact segments as they are. Threading: as
// FillableKvCache.
class CompactKvCache final : public FillableKvCache {
 public:
  // `backend` must outlive the cache. InvalidArgument for options out of bounds.
  static absl::StatusOr<std::unique_ptr<CompactKvCache>> Create(
      std::shared_ptr<const ProfileLayout> layout, ComputeBackend* backend,
      const CompactCacheOptions& options);

  const ProfileLayout& layout() const { return *layout_; }
  int segment_tokens() const { return segment_tokens_; }
  int64_t recent_window() const { return recent_window_; }

  // How many segments are compact in a cache of `length` tokens that was filled token by token:
  // what a FillPlan should ask for. A plan may have fewer; the rest is encoded at the next Advance.
  static int64_t CompactSegments(int64_t length, int segment_tokens, int64_t recent_window);

  absl::Status BeginFill(const FillPlan& plan, absl::Time deadline) override;

  absl::Status InstallCompact(int layer, int64_t segment, SharedBytes k_blob,
                              SharedBytes v_blob) override;

  // Encodes what Advance would, without waiting for it: for a cache that was filled with more exact
  // tokens than it needs. Waits until the fill is complete; fails as Append and
  // ComputeBackend::Encode do.
  absl::Status Compact();

  // The segments encoded by this cache since the last call, oldest first.
  std::vector<SealedSegment> TakeSealed();

 private:
  // The compact segments of one layer, in order of position.
  struct LayerSegments {
    std::vector<CompactBlock> blocks;
    std::vector<std::shared_ptr<const void>> owners;  // K and V of blocks[i] at 2 i and 2 i + 1
  };

  CompactKvCache(std::shared_ptr<const ProfileLayout> layout, ComputeBackend* backend,
                 const CompactCacheOptions& options);

  void AddCompact(int layer, LayerKv* kv) const override;
  absl::Status AfterAdvance() override;
  absl::Status CheckCompactInstalled(int layer) const override;
  int64_t compact_bytes() const override;

  absl::Status SealOldest();
  // The payload of a blob that was made for this place, and its owner.
  absl::StatusOr<SharedBytes> VerifiedPayload(int layer, Part part, int64_t segment,
                                              const SharedBytes& blob) const;

  const std::shared_ptr<const ProfileLayout> layout_;
  const int segment_tokens_;
  const int64_t recent_window_;
  const float max_relative_error_;
  std::vector<LayerSegments> segments_;  // per layer
  std::vector<SealedSegment> sealed_;
};

}  // namespace fourierkv
