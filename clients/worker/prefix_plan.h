// Which stored segments of a prompt to fetch, and in which form.

#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "compute/cache/fill_target.h"
#include "fourierkv/v1/kv_cache_service.pb.h"
#include "fourierkv/v1/prefill_service.pb.h"

namespace fourierkv {

struct PlannedFetch {
  v1::SegmentRequest request;
  int64_t segment = 0;
  int64_t tokens = 0;    // to install; fewer than the segment's if the last one is cut
  bool compact = false;  // the form that is asked for
};

struct PrefixPlan {
  FillPlan fill;  // fill.length: tokens that need not be computed
  int segment_tokens = 0;
  float max_relative_error = 0;  // of the fetch; 0: no bound
  std::vector<PlannedFetch> fetches;

  bool empty() const { return fill.length == 0; }
};

struct PrefixPolicy {
  v1::CacheMode mode = v1::CACHE_MODE_COMPACT;
  int segment_tokens = 0;
  int64_t recent_window = 0;
  int64_t sequence_tokens = 0;  // of the prompt that the cache will hold
  int64_t max_reused = 0;       // at most so many tokens are taken from the service
  // Of compact segments; others are taken exactly.
  float max_relative_error = std::numeric_limits<float>::infinity();
};

// In COMPACT mode: segment 0 exact; segments older than the recent window compact, but exact if
// their error is above the bound or, with a bound, not measured yet; what follows exact as far as
// the service holds it so, else compact too. In EXACT mode everything exact. The plan ends where a
// segment is held in none of these ways. The tail is used if it matched.
PrefixPlan PlanPrefix(const v1::MatchPrefixResponse& match, const PrefixPolicy& policy);

// True if the service holds all bits of the segment: EXACT or LOSSLESS.
bool HoldsExactly(const v1::MatchedSegment& segment);

// True if the service can give COMPACT of the segment, a full one behind the first, with errors
// that are known to be within `max_relative_error`; of what it holds at all if that is infinite.
bool HoldsCompact(const v1::MatchedSegment& segment, float max_relative_error);

}  // namespace fourierkv
