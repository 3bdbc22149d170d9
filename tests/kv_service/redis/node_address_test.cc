#include "kv_service/redis/node_address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

TEST(NodeAddressTest, IsAHostAndAPort) {
  for (const auto& [text, host, port] : {std::tuple{"127.0.0.1:6379", "127.0.0.1", 6379},
                                         std::tuple{"redis-0.redis:1", "redis-0.redis", 1},
                                         std::tuple{"[::1]:65535", "::1", 65535}}) {
    const auto address = NodeAddress::Parse(text, "--redis");
    ASSERT_TRUE(address.ok()) << address.status();
    EXPECT_EQ(address->host, host);
    EXPECT_EQ(address->port, port);
    EXPECT_EQ(address->ToString(), text);
  }
}

TEST(NodeAddressTest, AnythingElseIsRefusedByName) {
  for (const std::string& text :
       {std::string(""), std::string("host"), std::string(":1"), std::string("host:"),
        std::string("host:0"), std::string("host:65536"), std::string("host:-1"),
        std::string("host:x"), std::string("::1:6379"), std::string("[]:1"),
        std::string("a\0b:1", 5), std::string(256, 'a') + ":1"}) {
    const auto address = NodeAddress::Parse(text, "--redis");
    ASSERT_EQ(address.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(address.status().message()), HasSubstr("--redis"));
  }
}

TEST(NodeAddressTest, AListHasOneToSixtyFour) {
  const auto two = ParseNodeAddresses("a:1,b:2", "--redis");
  ASSERT_TRUE(two.ok());
  EXPECT_EQ(two->at(1).host, "b");
  EXPECT_FALSE(ParseNodeAddresses("", "--redis").ok());
  EXPECT_FALSE(ParseNodeAddresses("a:1,", "--redis").ok());
  std::string many = "a:1";
  for (int i = 0; i < 63; ++i) many += ",a:1";
  EXPECT_TRUE(ParseNodeAddresses(many, "--redis").ok());
  EXPECT_FALSE(ParseNodeAddresses(many + ",a:1", "--redis").ok());
}

TEST(NodeAddressTest, NumbersAndNamesAreResolved) {
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  const auto numeric = Resolve({"127.0.0.1", 6379}, deadline);
  ASSERT_TRUE(numeric.ok()) << numeric.status();
  EXPECT_EQ(numeric->front().storage.ss_family, AF_INET);
  const auto named = Resolve({"localhost", 6379}, deadline);
  EXPECT_TRUE(named.ok()) << named.status();
}

TEST(NodeAddressTest, WaitingForAnUnknownNameEnds) {
  const auto none = Resolve({"no-such-host.invalid", 1}, absl::Now() + absl::Milliseconds(50));
  EXPECT_TRUE(absl::IsUnavailable(none.status()) || absl::IsDeadlineExceeded(none.status()))
      << none.status();
}

}  // namespace
}  // namespace fourierkv
