// Where the exact tokens of a cache stand that has compact segments between them.

#pragma once

#include <cstdint>
#include <vector>

#include "compute/cache/fill_target.h"

namespace fourierkv {

// Exact tokens stand in order of position, without gaps where compact segments are: attention does
// not depend on the place of a token, as its position is part of its K. The first segment is exact;
// the `settled` ones behind it are compact, but for some that are exact for good; what follows is
// exact.
class ExactPlaces {
 public:
  // `segment_tokens` 0: everything is exact.
  explicit ExactPlaces(int64_t segment_tokens) : segment_tokens_(segment_tokens) {}
  // Of a cache filled by a plan that CheckFillPlan accepts.
  ExactPlaces(int64_t segment_tokens, const FillPlan& plan)
      : segment_tokens_(segment_tokens),
        settled_(plan.compact_segments),
        exact_inside_(plan.exact_inside) {}

  int64_t settled() const { return settled_; }
  const std::vector<int64_t>& exact_inside() const { return exact_inside_; }  // increasing
  int64_t compact_segments() const { return settled_ - static_cast<int64_t>(exact_inside_.size()); }
  int64_t compact_tokens() const { return compact_segments() * segment_tokens_; }
  // Where the oldest segment that is not settled begins among the exact tokens.
  int64_t unsettled_index() const {
    return (1 + static_cast<int64_t>(exact_inside_.size())) * segment_tokens_;
  }

  // Settles the oldest segment that is not.
  void Settle(bool compact);

  // Index among the exact tokens of the one at `position`, or -1 if that is compact; and back.
  int64_t IndexOf(int64_t position) const;
  int64_t PositionOf(int64_t index) const;
  // IndexOf the first of `tokens` tokens in a row, of a cache of `length`, or -1 unless all of them
  // are exact and stand together.
  int64_t IndexOfRun(int64_t position, int64_t tokens, int64_t length) const;

  // Index among the compact segments of `segment`, or -1 if it is not one; and back.
  int64_t CompactIndexOf(int64_t segment) const;
  int64_t SegmentOf(int64_t compact_index) const;

 private:
  int64_t segment_tokens_;
  int64_t settled_ = 0;
  std::vector<int64_t> exact_inside_;  // from 1 to settled_
};

}  // namespace fourierkv
