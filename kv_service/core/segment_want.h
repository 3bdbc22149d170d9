// What a reader asks for.

#pragma once

#include <vector>

#include "kv_service/core/stored_segment.h"

namespace fourierkv {

struct SegmentWant {
  BlockKey key;
  std::vector<SegmentForm> forms;  // acceptable, best first
  // Of every part of what is given: a number >= 0.
  float max_relative_error = kNoErrorBound;
};

}  // namespace fourierkv
