// One connection to one Redis server.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kv_service/redis/node_address.h"
#include "kv_service/redis/redis_command.h"
#include "kv_service/redis/redis_reply.h"
#include "kv_service/redis/reply_parser.h"

namespace fourierkv {

struct RedisConnectionOptions {
  // Called for each new connection, so that a rotated password is found; may be null: no AUTH.
  std::function<absl::StatusOr<std::string>()> password;
  std::string username;  // an ACL user; empty: the default user
  absl::Duration connect_timeout = absl::Seconds(1);
  // How long a server may neither take nor give a byte of what is outstanding.
  absl::Duration stall_timeout = absl::Seconds(1);
  int64_t max_reply_bytes = int64_t{16} << 20;
};

// hiredis parses the replies; the socket is our own, because hiredis' calls cannot be held to a
// deadline. Not thread safe.
class RedisConnection {
 public:
  // Connects and authenticates. Unavailable if the server refuses, stalls or says it cannot serve;
  // Unauthenticated if it does not accept the password; DeadlineExceeded.
  static absl::StatusOr<std::unique_ptr<RedisConnection>> Connect(
      const NodeAddress& address, const RedisConnectionOptions& options, absl::Time deadline);
  ~RedisConnection();
  RedisConnection(const RedisConnection&) = delete;
  RedisConnection& operator=(const RedisConnection&) = delete;

  // Sends all commands at once and returns their replies in order; a reply may be an error. After
  // any status but OK the connection must not be used again: Unavailable if it broke or stalled;
  // DeadlineExceeded; Internal if the server does not speak Redis' protocol.
  absl::StatusOr<std::vector<RedisReply>> Call(std::span<const RedisCommand* const> commands,
                                               absl::Time deadline);

  // Whether the server has neither closed the connection nor said what was not asked for.
  bool IsQuiet() const;

  // Whether the last Call got any byte from the server.
  bool heard() const { return heard_; }

 private:
  RedisConnection(const NodeAddress& address, const RedisConnectionOptions& options, int fd);
  static absl::StatusOr<std::unique_ptr<RedisConnection>> ConnectBefore(
      const NodeAddress& address, const RedisConnectionOptions& options, absl::Time until);
  absl::Status Authenticate(const RedisConnectionOptions& options, absl::Time until);
  absl::Status ReadReplies(std::vector<RedisReply>* replies, size_t expected, bool* progress);

  const NodeAddress address_;
  const absl::Duration stall_timeout_;
  const int fd_;
  bool heard_ = false;
  ReplyParser parser_;
  std::unique_ptr<char[]> buffer_;
};

}  // namespace fourierkv
