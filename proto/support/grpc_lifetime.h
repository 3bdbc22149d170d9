// When gRPC's own threads end.

#pragma once

#include <grpc/grpc.h>

namespace fourierkv {

// gRPC shuts itself down with its last channel or server, and may wait ten seconds then for a
// poller that it started for a large write. After this it stays up until the process ends.
inline void KeepGrpcUntilExit() { [[maybe_unused]] static const bool kept = (grpc_init(), true); }

}  // namespace fourierkv
