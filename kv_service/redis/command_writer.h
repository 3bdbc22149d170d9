// Sends commands without copying their values.

#pragma once

#include <sys/uio.h>

#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kv_service/redis/redis_command.h"

namespace fourierkv {

// The wire form (RESP arrays of bulk strings) of some commands, and how much of it is sent. Borrows
// the commands. Not thread safe.
class CommandWriter {
 public:
  explicit CommandWriter(std::span<const RedisCommand* const> commands);

  bool done() const { return next_ == pieces_.size(); }

  // Sends what a non-blocking socket takes. Returns how many bytes; Unavailable if the connection
  // broke.
  absl::StatusOr<size_t> SendSome(int fd);

 private:
  std::string framing_;  // everything but the values
  std::vector<iovec> pieces_;
  size_t next_ = 0;  // the first piece that is not sent wholly
};

}  // namespace fourierkv
