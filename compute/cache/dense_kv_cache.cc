#include "compute/cache/dense_kv_cache.h"

#include "absl/strings/str_cat.h"

namespace fourierkv {

absl::StatusOr<std::unique_ptr<DenseKvCache>> DenseKvCache::Create(const KvGeometry& geometry,
                                                                   ComputeBackend* backend,
                                                                   int64_t max_tokens,
                                                                   KvDtype dtype) {
  if (absl::Status s = geometry.Validate(); !s.ok()) return s;
  if (max_tokens < 1 || max_tokens > kMaxCacheTokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens is ", max_tokens, "; it must be 1 to ", kMaxCacheTokens));
  }
  // hole_first = 0: nothing is ever compact.
  return std::unique_ptr<DenseKvCache>(
      new DenseKvCache(geometry, dtype, max_tokens, /*hole_first=*/0, backend));
}

}  // namespace fourierkv
