#include "compute/cache/exact_places.h"

#include <algorithm>

namespace fourierkv {

void ExactPlaces::Settle(bool compact) {
  ++settled_;
  if (!compact) exact_inside_.push_back(settled_);
}

int64_t ExactPlaces::IndexOf(int64_t position) const {
  if (settled_ == 0 || position < segment_tokens_) return position;
  if (position >= (1 + settled_) * segment_tokens_) return position - compact_tokens();
  const int64_t segment = position / segment_tokens_;
  const auto at = std::lower_bound(exact_inside_.begin(), exact_inside_.end(), segment);
  if (at == exact_inside_.end() || *at != segment) return -1;
  return (1 + (at - exact_inside_.begin())) * segment_tokens_ + position % segment_tokens_;
}

int64_t ExactPlaces::PositionOf(int64_t index) const {
  if (settled_ == 0 || index < segment_tokens_) return index;
  if (index >= unsettled_index()) return index + compact_tokens();
  return exact_inside_[index / segment_tokens_ - 1] * segment_tokens_ + index % segment_tokens_;
}

int64_t ExactPlaces::IndexOfRun(int64_t position, int64_t tokens, int64_t length) const {
  if (position < 0 || tokens < 1 || tokens > length || position > length - tokens) return -1;
  const int64_t first = IndexOf(position);
  // A compact token between the two would bring them closer together.
  return first >= 0 && IndexOf(position + tokens - 1) == first + tokens - 1 ? first : -1;
}

int64_t ExactPlaces::CompactIndexOf(int64_t segment) const {
  if (segment < 1 || segment > settled_) return -1;
  const auto exact = std::lower_bound(exact_inside_.begin(), exact_inside_.end(), segment);
  if (exact != exact_inside_.end() && *exact == segment) return -1;
  return segment - 1 - (exact - exact_inside_.begin());
}

int64_t ExactPlaces::SegmentOf(int64_t compact_index) const {
  int64_t segment = compact_index + 1;
  for (const int64_t exact : exact_inside_) segment += exact <= segment ? 1 : 0;
  return segment;
}

}  // namespace fourierkv
