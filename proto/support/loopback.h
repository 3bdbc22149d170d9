// Which addresses do not leave the machine.

#pragma once

#include "absl/strings/match.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

// Of HOST:PORT or unix:PATH, as gRPC takes them.
inline bool IsLoopback(absl::string_view address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]:") || absl::StartsWith(address, "unix:");
}

}  // namespace fourierkv
