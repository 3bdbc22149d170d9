// What names a call across programs, and which call a thread works for.

#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace fourierkv {

// Metadata of these names carries it.
inline constexpr char kRequestIdName[] = "x-request-id";
inline constexpr char kTraceparentName[] = "traceparent";

// What names a call in logs, here and elsewhere.
struct CallIdentity {
  std::string request_id;   // the client's "x-request-id", or one that is made
  std::string traceparent;  // of W3C trace context, if the client sent one; else empty
};

// The value if it is 1 to 128 of A-Z a-z 0-9 . _ - : / + =; otherwise 16 random hexadecimal digits.
std::string RequestIdOf(absl::string_view sent);
// The value if it is a traceparent of version 00; otherwise empty.
std::string TraceparentOf(absl::string_view sent);

// The call that this thread works for: those that it makes in turn carry on its ids. Both are empty
// if it works for none.
const CallIdentity& CurrentCall();
void SetCurrentCall(CallIdentity call);

// Makes a call this thread's while it lives: for threads that work for another one's call.
class CallScope {
 public:
  explicit CallScope(CallIdentity call);
  ~CallScope();
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;

 private:
  const CallIdentity before_;
};

}  // namespace fourierkv
