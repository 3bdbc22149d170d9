#include "compute/cache/fill_target.h"

#include "absl/strings/str_cat.h"

namespace fourierkv {

absl::Status CheckFillPlan(const FillPlan& plan, int64_t segment_tokens, int64_t max_tokens) {
  if (plan.length < 1 || plan.compact_segments < 0) {
    return absl::InvalidArgumentError(absl::StrCat("a fill of ", plan.length, " tokens with ",
                                                   plan.compact_segments, " compact segments"));
  }
  if (plan.length > max_tokens) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a fill of ", plan.length, " tokens: the cache holds ", max_tokens, " at most"));
  }
  const bool fits =
      plan.compact_segments == 0 ||
      (segment_tokens > 0 && plan.compact_segments <= plan.length / segment_tokens - 1);
  if (!fits) {
    return absl::InvalidArgumentError(
        absl::StrCat("a cache of ", plan.length, " tokens cannot have ", plan.compact_segments,
                     " compact segments", segment_tokens == 0 ? ": it is dense" : ""));
  }
  int64_t last = 0;
  for (const int64_t segment : plan.exact_inside) {
    if (segment <= last || segment > plan.compact_segments) {
      return absl::InvalidArgumentError(absl::StrCat("exact_inside: segment ", segment, " after ",
                                                     last, "; they must increase, from 1 to ",
                                                     plan.compact_segments));
    }
    last = segment;
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
