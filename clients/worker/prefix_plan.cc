#include "clients/worker/prefix_plan.h"

#include <algorithm>
#include <cmath>

#include "compute/cache/compact_kv_cache.h"

namespace fourierkv {

bool HoldsExactly(const v1::MatchedSegment& segment) {
  return std::any_of(segment.forms().begin(), segment.forms().end(), [](const v1::HeldForm& held) {
    return held.form() == v1::SEGMENT_FORM_EXACT || held.form() == v1::SEGMENT_FORM_LOSSLESS;
  });
}

bool HoldsCompact(const v1::MatchedSegment& segment, float max_relative_error) {
  if (std::isinf(max_relative_error)) return true;
  return std::any_of(segment.forms().begin(), segment.forms().end(), [&](const v1::HeldForm& held) {
    return held.form() == v1::SEGMENT_FORM_COMPACT &&
           held.max_relative_error() <= max_relative_error;
  });
}

PrefixPlan PlanPrefix(const v1::MatchPrefixResponse& match, const PrefixPolicy& policy) {
  const int64_t segment_tokens = policy.segment_tokens;
  const auto exact = [&](int64_t i) { return HoldsExactly(match.segments(static_cast<int>(i))); };
  const auto compressible = [&](int64_t i) {
    return policy.mode == v1::CACHE_MODE_COMPACT && i > 0 &&
           HoldsCompact(match.segments(static_cast<int>(i)), policy.max_relative_error);
  };
  int64_t full = 0;  // usable full segments
  while (full < match.segments_size() &&
         match.segments(static_cast<int>(full)).tokens() == segment_tokens &&
         full * segment_tokens < policy.max_reused) {
    if (!exact(full) && !compressible(full)) break;
    ++full;
  }
  int64_t compact = 0;  // segments 1 .. compact
  if (policy.mode == v1::CACHE_MODE_COMPACT && full > 0) {
    compact = std::min(
        full - 1, CompactKvCache::CompactSegments(policy.sequence_tokens, policy.segment_tokens,
                                                  policy.recent_window));
    for (int64_t i = full - 1; i > compact; --i) {
      if (!exact(i)) compact = i;
    }
  }
  int64_t length = full * segment_tokens;
  const bool tail = full < match.segments_size() && length < policy.max_reused &&
                    match.segments(static_cast<int>(full)).tokens() < segment_tokens && exact(full);
  if (tail) length += match.segments(static_cast<int>(full)).tokens();
  if (length > policy.max_reused) {
    if (!tail && compact == full - 1 && compact > 0) {  // a compact segment cannot be cut
      --full;
      --compact;
      length = full * segment_tokens;
    }
    length = std::min(length, policy.max_reused);
  }

  PrefixPlan plan;
  plan.segment_tokens = policy.segment_tokens;
  plan.fill.length = length;
  plan.fill.compact_segments = compact;
  if (!std::isinf(policy.max_relative_error)) plan.max_relative_error = policy.max_relative_error;
  for (int64_t i = 1; i <= compact; ++i) {
    if (!compressible(i)) plan.fill.exact_inside.push_back(i);
  }
  for (int64_t i = 0; i * segment_tokens < length; ++i) {
    PlannedFetch fetch;
    fetch.segment = i;
    fetch.tokens = std::min(segment_tokens, length - i * segment_tokens);
    fetch.compact = i >= 1 && i <= compact && compressible(i);
    fetch.request.set_block_key(match.segments(static_cast<int>(i)).block_key());
    if (fetch.compact) {
      fetch.request.add_accepted_forms(v1::SEGMENT_FORM_COMPACT);
    } else {
      fetch.request.add_accepted_forms(v1::SEGMENT_FORM_EXACT);
      fetch.request.add_accepted_forms(v1::SEGMENT_FORM_LOSSLESS);
    }
    plan.fetches.push_back(std::move(fetch));
  }
  return plan;
}

}  // namespace fourierkv
