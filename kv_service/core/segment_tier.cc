#include "kv_service/core/segment_tier.h"

namespace fourierkv {

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
