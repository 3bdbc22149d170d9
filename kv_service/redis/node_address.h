// Where a Redis server listens.

#pragma once

#include <sys/socket.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace fourierkv {

struct NodeAddress {
  std::string host;  // a name or an IP address, without brackets
  int port = 0;

  auto operator<=>(const NodeAddress&) const = default;
  std::string ToString() const;  // with brackets around a host that has colons

  // HOST:PORT or [IPV6]:PORT. InvalidArgument, naming `field`, for anything else.
  static absl::StatusOr<NodeAddress> Parse(absl::string_view text, absl::string_view field);
};

// HOST:PORT,... : at least one, at most 64.
absl::StatusOr<std::vector<NodeAddress>> ParseNodeAddresses(absl::string_view text,
                                                            absl::string_view field);

// A longer host name is no host name.
inline constexpr size_t kMaxHostBytes = 255;

struct SocketAddress {
  sockaddr_storage storage;
  socklen_t size;
};

// The socket addresses of a node, at least one. Names are looked up on a thread of its own, because
// the system's lookup knows no deadline. DeadlineExceeded; Unavailable if the name is not known or
// too many lookups hang.
absl::StatusOr<std::vector<SocketAddress>> Resolve(const NodeAddress& address, absl::Time deadline);

}  // namespace fourierkv
