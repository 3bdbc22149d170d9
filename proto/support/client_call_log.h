// The ids of calls that a program makes, sent and logged.

#pragma once

#include <grpcpp/support/client_interceptor.h>

#include <memory>

namespace fourierkv {

// Every call carries the ids of the call that its thread works for (call_identity.h), or else a
// request id that is made; ids in the call's own metadata are left alone. One line in the log for
// each that ended, at level debug: "call.done" or "call.failed", with method, ids, status and time.
std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface> MakeClientCallLog();

}  // namespace fourierkv
