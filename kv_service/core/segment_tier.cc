#include "kv_service/core/segment_tier.h"

#include <algorithm>
#include <iterator>

namespace fourierkv {

bool HoldsAnything(const TierSegment& held) {
  return std::any_of(std::begin(kHeldForms), std::end(kHeldForms),
                     [&](SegmentForm form) { return held.forms[form].bytes > 0; });
}

const char* DurabilityName(Durability durability) {
  switch (durability) {
    case Durability::kMemory:
      return "memory";
    case Durability::kDisk:
      return "disk";
    case Durability::kShared:
      return "shared";
  }
  return "unknown";
}

}  // namespace fourierkv
