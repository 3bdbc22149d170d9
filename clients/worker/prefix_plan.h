// Which stored segments of a prompt to fetch, and in which form.

#pragma once

#include <cstdint>
#include <vector>

#include "compute/cache/fillable_kv_cache.h"
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
  std::vector<PlannedFetch> fetches;

  bool empty() const { return fill.length == 0; }
};

struct PrefixPolicy {
  v1::CacheMode mode = v1::CACHE_MODE_COMPACT;
  int segment_tokens = 0;
  int64_t recent_window = 0;
  int64_t sequence_tokens = 0;  // of the prompt that the cache will hold
  int64_t max_reused = 0;       // at most so many tokens are taken from the service
};

// In COMPACT mode: segment 0 exact; segments older than the recent window compact; what follows
// exact as far as the service holds that form, else compact too. In EXACT mode everything exact;
// the plan ends where that form is missing. The tail is used if it matched.
PrefixPlan PlanPrefix(const v1::MatchPrefixResponse& match, const PrefixPolicy& policy);

// True if the service holds `form` of the segment.
bool Holds(const v1::MatchedSegment& segment, v1::SegmentForm form);

}  // namespace fourierkv
