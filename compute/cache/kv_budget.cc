#include "compute/cache/kv_budget.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "compute/cache/compact_kv_cache.h"

namespace fourierkv {

KvPlaces PlacesNeeded(bool compact, bool bounded, int64_t max_tokens, int64_t recent_window,
                      int segment_tokens, int64_t chunk_tokens) {
  const auto segments = [&](int64_t tokens) {
    return (tokens + segment_tokens - 1) / segment_tokens;
  };
  KvPlaces places;
  places.blocks = segments(max_tokens);
  if (!compact) return places;
  places.slots = CompactKvCache::CompactSegments(max_tokens, segment_tokens, recent_window);
  if (!bounded) {
    // The sink, and W + S recent tokens before a chunk joins them.
    const int64_t exact = 2 * segment_tokens + recent_window + chunk_tokens;
    places.blocks = std::min(places.blocks, segments(exact));
  }
  return places;
}

absl::StatusOr<std::unique_ptr<KvBudget::Claim>> KvBudget::Take(const KvPlaces& places) {
  std::lock_guard lock(mutex_);
  const bool ever = places.blocks <= all_.blocks && places.slots <= all_.slots;
  if (!ever || places.blocks > all_.blocks - taken_.blocks ||
      places.slots > all_.slots - taken_.slots) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the sequence needs ", places.blocks, " blocks of exact tokens and ", places.slots,
        " slots of compact segments in the GPU's memory, which has ", all_.blocks, " and ",
        all_.slots,
        ever ? absl::StrCat("; other sequences have ", taken_.blocks, " and ", taken_.slots,
                            ": try again later")
             : std::string(": give the worker more with --kv-memory, or ask for less")));
  }
  taken_.blocks += places.blocks;
  taken_.slots += places.slots;
  return std::unique_ptr<Claim>(new Claim(this, places));
}

void KvBudget::GiveBack(const KvPlaces& places) {
  std::lock_guard lock(mutex_);
  taken_.blocks -= places.blocks;
  taken_.slots -= places.slots;
}

}  // namespace fourierkv
