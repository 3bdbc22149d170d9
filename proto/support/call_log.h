// One line in the log for each call that an operator should know of.

#pragma once

#include <grpcpp/support/server_interceptor.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace fourierkv {

// What names a call in logs, here and elsewhere.
struct CallIdentity {
  std::string request_id;   // the client's "x-request-id", or one that is made
  std::string traceparent;  // of W3C trace context, if the client sent one; else empty
};

// The value if it is 1 to 128 of A-Z a-z 0-9 . _ - : / + =; otherwise 16 random hexadecimal digits.
std::string RequestIdOf(absl::string_view sent);
// The value if it is a traceparent of version 00; otherwise empty.
std::string TraceparentOf(absl::string_view sent);

// Watches all calls of a server: "rpc.failed" for those that fail (at level error if the fault is
// the server's), "rpc.slow" for those that take `slow` or longer (zero: none), "rpc.done" at level
// debug for the others. Each line has the method, the ids, the status and three phases: until the
// first message came, until the first was sent, and until the end. Calls get their id back in the
// initial metadata. Health checks are not logged, and subscriptions are never slow.
std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeCallLog(
    absl::Duration slow);

}  // namespace fourierkv
