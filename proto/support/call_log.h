// One line in the log for each call that an operator should know of.

#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <memory>

#include "proto/support/live_duration.h"

namespace fourierkv {

// Watches all calls of a server: "rpc.failed" for those that fail (at level error if the fault is
// the server's), "rpc.slow" for those that take `slow` or longer (zero: none), "rpc.done" at level
// debug for the others. Each line has the method, the ids, the status and three phases: until the
// first message came, until the first was sent, and until the end. Calls get their id back in the
// initial metadata. Health checks are not logged, and subscriptions are never slow.
// `slow` may change meanwhile.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeCallLog(
    std::shared_ptr<const LiveDuration> slow);

}  // namespace fourierkv
