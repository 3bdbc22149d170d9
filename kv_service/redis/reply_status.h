// What the error replies of a Redis server mean.

#pragma once

#include <optional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kv_service/redis/node_address.h"

namespace fourierkv {

// "MOVED 3999 127.0.0.1:6381" or "ASK 3999 127.0.0.1:6381": another node has the slot (MOVED), or
// has this key of it (ASK).
struct Redirection {
  bool ask = false;
  int slot = 0;
  NodeAddress to;  // without host: the same host as the node that answered
};

// Nullopt if `error` is no redirection or a malformed one.
std::optional<Redirection> ParseRedirection(absl::string_view error);

// The status of an error reply, with the server's words: Unavailable (LOADING, CLUSTERDOWN,
// MASTERDOWN, MISCONF, READONLY, TRYAGAIN, NOREPLICAS, BUSY, redirections, too many clients),
// ResourceExhausted (OOM), Unauthenticated (NOAUTH, WRONGPASS), PermissionDenied (NOPERM),
// FailedPrecondition (WRONGTYPE, no cluster), else Internal.
absl::Status StatusOfErrorReply(absl::string_view error);

}  // namespace fourierkv
