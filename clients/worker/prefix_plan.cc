#include "clients/worker/prefix_plan.h"

#include <algorithm>

#include "compute/cache/compact_kv_cache.h"

namespace fourierkv {

bool Holds(const v1::MatchedSegment& segment, v1::SegmentForm form) {
  return std::any_of(segment.forms().begin(), segment.forms().end(),
                     [form](const v1::HeldForm& held) { return held.form() == form; });
}

PrefixPlan PlanPrefix(const v1::MatchPrefixResponse& match, const PrefixPolicy& policy) {
  const int64_t segment_tokens = policy.segment_tokens;
  const auto exact = [&](int64_t i) {
    return Holds(match.segments(static_cast<int>(i)), v1::SEGMENT_FORM_EXACT);
  };
  int64_t full = 0;  // usable full segments
  while (full < match.segments_size() &&
         match.segments(static_cast<int>(full)).tokens() == segment_tokens &&
         full * segment_tokens < policy.max_reused) {
    if ((policy.mode == v1::CACHE_MODE_EXACT || full == 0) && !exact(full)) break;
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
  for (int64_t i = 0; i * segment_tokens < length; ++i) {
    PlannedFetch fetch;
    fetch.segment = i;
    fetch.tokens = std::min(segment_tokens, length - i * segment_tokens);
    fetch.compact = i >= 1 && i <= compact;
    fetch.request.set_block_key(match.segments(static_cast<int>(i)).block_key());
    fetch.request.add_accepted_forms(fetch.compact ? v1::SEGMENT_FORM_COMPACT
                                                   : v1::SEGMENT_FORM_EXACT);
    plan.fetches.push_back(std::move(fetch));
  }
  return plan;
}

}  // namespace fourierkv
