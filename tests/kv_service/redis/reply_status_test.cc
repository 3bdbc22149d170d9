#include "kv_service/redis/reply_status.h"

#include <gtest/gtest.h>

#include <string>

namespace fourierkv {
namespace {

TEST(ReplyStatusTest, RedirectionsAreUnderstood) {
  const auto moved = ParseRedirection("MOVED 3999 127.0.0.1:6381");
  ASSERT_TRUE(moved.has_value());
  EXPECT_FALSE(moved->ask);
  EXPECT_EQ(moved->slot, 3999);
  EXPECT_EQ(moved->to, (NodeAddress{"127.0.0.1", 6381}));
  const auto ask = ParseRedirection("ASK 0 ::1:1");
  ASSERT_TRUE(ask.has_value());
  EXPECT_TRUE(ask->ask);
  EXPECT_EQ(ask->to, (NodeAddress{"::1", 1}));
  EXPECT_EQ(ParseRedirection("MOVED 16383 :6381")->to.host, "");
}

TEST(ReplyStatusTest, MalformedRedirectionsAreNone) {
  for (const char* text :
       {"", "MOVED", "MOVED 1", "MOVED x a:1", "MOVED -1 a:1", "MOVED 16384 a:1", "MOVED 1 a",
        "MOVED 1 a:0", "MOVED 1 a:65536", "MOVED 1 a:x", "MOVEDX 1 a:1", "ERR MOVED 1 a:1"}) {
    EXPECT_FALSE(ParseRedirection(text).has_value()) << text;
  }
  EXPECT_FALSE(ParseRedirection("MOVED 1 " + std::string(300, 'a') + ":1").has_value());
}

TEST(ReplyStatusTest, ErrorsHaveTheCodeThatTellsWhatToDo) {
  for (const auto& [text, code] :
       {std::pair{"LOADING Redis is loading the dataset in memory", absl::StatusCode::kUnavailable},
        std::pair{"CLUSTERDOWN Hash slot not served", absl::StatusCode::kUnavailable},
        std::pair{"READONLY You can't write against a read only replica.",
                  absl::StatusCode::kUnavailable},
        std::pair{"OOM command not allowed when used memory > 'maxmemory'.",
                  absl::StatusCode::kResourceExhausted},
        std::pair{"NOAUTH Authentication required.", absl::StatusCode::kUnauthenticated},
        std::pair{"WRONGPASS invalid username-password pair", absl::StatusCode::kUnauthenticated},
        std::pair{"NOPERM this user has no permissions", absl::StatusCode::kPermissionDenied},
        std::pair{"WRONGTYPE Operation against a key", absl::StatusCode::kFailedPrecondition},
        std::pair{"ERR unknown command", absl::StatusCode::kInternal}}) {
    EXPECT_EQ(StatusOfErrorReply(text).code(), code) << text;
    EXPECT_NE(StatusOfErrorReply(text).message().find(text), absl::string_view::npos);
  }
  EXPECT_LT(StatusOfErrorReply(std::string(10'000, 'x')).message().size(), 1000);
}

}  // namespace
}  // namespace fourierkv
