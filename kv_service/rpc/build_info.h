// What this program was built of.

#pragma once

#include "fourierkv/v1/admin_service.pb.h"

namespace fourierkv {

v1::GetBuildInfoResponse BuildInfo();

}  // namespace fourierkv
