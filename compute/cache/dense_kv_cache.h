// A cache that holds every token exactly.

#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "compute/cache/fillable_kv_cache.h"

namespace fourierkv {

// The largest capacity any cache may be given.
inline constexpr int64_t kMaxCacheTokens = int64_t{1} << 24;

class DenseKvCache final : public FillableKvCache {
 public:
  // `backend` must outlive the cache. InvalidArgument for a bad geometry or a capacity outside
  // 1 .. kMaxCacheTokens. Memory is taken as tokens arrive.
  static absl::StatusOr<std::unique_ptr<DenseKvCache>> Create(const KvGeometry& geometry,
                                                              ComputeBackend* backend,
                                                              int64_t max_tokens,
                                                              KvDtype dtype = KvDtype::kBf16);

 private:
  using FillableKvCache::FillableKvCache;
};

}  // namespace fourierkv
