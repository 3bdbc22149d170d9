// Redis' wire protocol (RESP2), read from bytes that nobody vouches for.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kv_service/redis/redis_reply.h"

struct redisReader;

namespace fourierkv {

// Elements of all arrays of one reply together, and objects in it.
inline constexpr int64_t kMaxReplyObjects = 1 << 18;

// Makes replies of a stream of bytes. After an error it is of no more use. Not thread safe.
class ReplyParser {
 public:
  // A reply that takes more than `max_reply_bytes` on the wire is an error, found when that many
  // bytes have arrived.
  explicit ReplyParser(int64_t max_reply_bytes);
  ~ReplyParser();
  ReplyParser(const ReplyParser&) = delete;
  ReplyParser& operator=(const ReplyParser&) = delete;

  // ResourceExhausted if memory runs out. Call Next until it has none before feeding more.
  absl::Status Feed(absl::string_view bytes);

  // The next whole reply; nullopt if more bytes are needed for one. Internal if the bytes are not
  // RESP2 or a reply exceeds a limit.
  absl::StatusOr<std::optional<RedisReply>> Next();

  // Whether bytes were fed that no reply returned so far covers.
  bool HasLeftovers() const;

 private:
  struct Free {
    void operator()(redisReader* reader) const;
  };

  const int64_t max_reply_bytes_;
  int64_t pending_bytes_ = 0;    // fed since the last whole reply, that reply's own excluded
  int64_t pending_objects_ = 0;  // counted down while one reply is read
  std::unique_ptr<redisReader, Free> reader_;
};

}  // namespace fourierkv
