// Why segments are gone, on the wire.

#pragma once

#include "fourierkv/v1/event_service.pb.h"
#include "kv_service/core/segment_tree.h"

namespace fourierkv {

inline v1::RemovalReason ToProto(RemovalReason reason) {
  switch (reason) {
    case RemovalReason::kEvicted:
      return v1::REMOVAL_REASON_EVICTED;
    case RemovalReason::kDeleted:
      return v1::REMOVAL_REASON_DELETED;
    case RemovalReason::kDamaged:
      return v1::REMOVAL_REASON_DAMAGED;
  }
  return v1::REMOVAL_REASON_UNSPECIFIED;
}

}  // namespace fourierkv
