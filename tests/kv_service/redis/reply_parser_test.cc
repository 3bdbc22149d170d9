#include "kv_service/redis/reply_parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;
using Type = RedisReply::Type;

constexpr int64_t kLimit = 1 << 20;

// The first reply of `bytes`, fed in pieces of `step`.
absl::StatusOr<std::optional<RedisReply>> Parse(const std::string& bytes, size_t step = 1 << 20,
                                                int64_t limit = kLimit) {
  ReplyParser parser(limit);
  for (size_t at = 0; at < bytes.size(); at += step) {
    const absl::Status fed = parser.Feed(absl::string_view(bytes).substr(at, step));
    if (!fed.ok()) return fed;
    auto reply = parser.Next();
    if (!reply.ok() || reply->has_value()) return reply;
  }
  return std::nullopt;
}

RedisReply MustParse(const std::string& bytes, size_t step = 1 << 20) {
  const auto reply = Parse(bytes, step);
  EXPECT_TRUE(reply.ok()) << reply.status();
  EXPECT_TRUE(reply->has_value());
  return reply.ok() && reply->has_value() ? **reply : RedisReply();
}

TEST(ReplyParserTest, ReadsEveryKindOfReplyInAnyPieces) {
  for (const size_t step : {size_t{1}, size_t{3}, size_t{100}}) {
    SCOPED_TRACE(step);
    EXPECT_EQ(MustParse("+OK\r\n", step).type, Type::kStatus);
    EXPECT_EQ(MustParse("+OK\r\n", step).text, "OK");
    EXPECT_EQ(MustParse("-ERR no\r\n", step).type, Type::kError);
    EXPECT_EQ(MustParse("-ERR no\r\n", step).text, "ERR no");
    EXPECT_EQ(MustParse(":-12\r\n", step).integer, -12);
    EXPECT_EQ(MustParse("$-1\r\n", step).type, Type::kNil);
    EXPECT_EQ(MustParse("*-1\r\n", step).type, Type::kNil);
    EXPECT_EQ(MustParse("$0\r\n\r\n", step).text, "");
    EXPECT_EQ(MustParse(std::string("$5\r\na\r\n\0b\r\n", 11), step).text,
              std::string("a\r\n\0b", 5));
    const RedisReply nested = MustParse("*3\r\n:1\r\n*2\r\n$1\r\nx\r\n*0\r\n+y\r\n", step);
    ASSERT_EQ(nested.elements.size(), 3);
    ASSERT_EQ(nested.elements[1].elements.size(), 2);
    EXPECT_EQ(nested.elements[1].elements[0].text, "x");
    EXPECT_TRUE(nested.elements[1].elements[1].IsArray());
    EXPECT_EQ(nested.elements[2].text, "y");
  }
}

TEST(ReplyParserTest, ReadsRepliesOneAfterTheOther) {
  ReplyParser parser(kLimit);
  ASSERT_TRUE(parser.Feed("+a\r\n+b\r\n$3\r\nxy").ok());
  EXPECT_EQ((**parser.Next()).text, "a");
  EXPECT_TRUE(parser.HasLeftovers());
  EXPECT_EQ((**parser.Next()).text, "b");
  EXPECT_FALSE(parser.Next()->has_value());
  ASSERT_TRUE(parser.Feed("z\r\n").ok());
  EXPECT_EQ((**parser.Next()).text, "xyz");
  EXPECT_FALSE(parser.HasLeftovers());
}

TEST(ReplyParserTest, WhatIsNoRedisReplyIsAnError) {
  for (const std::string& bytes :
       {std::string("HTTP/1.1 200 OK\r\n"), std::string("\x16\x03\x01"), std::string(1, '\0'),
        std::string(":x\r\n"), std::string(":99999999999999999999\r\n"), std::string("$-2\r\n"),
        std::string("$x\r\n"), std::string("*-2\r\n"), std::string("*x\r\n"),
        // RESP3, which was not asked for.
        std::string(",1.5\r\n"), std::string("#t\r\n"), std::string("%1\r\n:1\r\n:2\r\n"),
        std::string("~1\r\n:1\r\n"), std::string(">1\r\n:1\r\n"), std::string("=5\r\ntxt:a\r\n")}) {
    EXPECT_EQ(Parse(bytes).status().code(), absl::StatusCode::kInternal) << bytes;
  }
}

TEST(ReplyParserTest, SizesThatAreOnlyClaimedCostNothing) {
  for (const char* bytes : {"$9223372036854775807\r\n", "*2147483647\r\n", "*4294967295\r\n",
                            "*2147483647\r\n*2147483647\r\n*2147483647\r\n"}) {
    const auto reply = Parse(bytes);  // an error, or a wait for what will not come
    EXPECT_TRUE(!reply.ok() || !reply->has_value()) << bytes;
  }
}

TEST(ReplyParserTest, AReplyMayBeAsLargeAsTheLimit) {
  const std::string value(1000, 'v');
  const std::string wire = absl::StrCat("$1000\r\n", value, "\r\n");
  for (const size_t step : {size_t{1}, size_t{64}, size_t{10'000}}) {
    const auto fits = Parse(wire, step, static_cast<int64_t>(wire.size()));
    ASSERT_TRUE(fits.ok()) << fits.status();
    EXPECT_EQ((**fits).text, value);
  }
  const auto large = Parse(wire, 1, static_cast<int64_t>(wire.size()) - 2);
  EXPECT_EQ(large.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(large.status().message()), HasSubstr("larger than"));
  // Many small elements, too.
  std::string many = "*1000000\r\n";
  for (int i = 0; i < 1000; ++i) many += "$4\r\nabcd\r\n";
  EXPECT_EQ(Parse(many, 100, 1000).status().code(), absl::StatusCode::kInternal);
}

TEST(ReplyParserTest, AReplyHasALimitedNumberOfElements) {
  std::string many = absl::StrCat("*", kMaxReplyObjects, "\r\n");
  for (int64_t i = 0; i < kMaxReplyObjects; ++i) many += ":1\r\n";
  const auto reply = Parse(many, 1 << 16, int64_t{1} << 30);
  EXPECT_EQ(reply.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(reply.status().message()), HasSubstr("elements"));
}

TEST(ReplyParserTest, DeepNestingIsBounded) {
  std::string deep;
  for (int i = 0; i < 100'000; ++i) deep += "*1\r\n";
  EXPECT_EQ(Parse(deep + ":1\r\n", 1 << 20).status().code(), absl::StatusCode::kInternal);
}

TEST(ReplyParserTest, RandomBytesNeverDoHarm) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const std::string alphabet = "*$:+-0123456789\r\n\r\n\r\nab,#%~>";
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes;
    for (size_t n = random() % 60; n > 0; --n) bytes += alphabet[random() % alphabet.size()];
    ReplyParser parser(4096);
    for (size_t at = 0; at < bytes.size();) {
      const size_t step = 1 + random() % 20;
      if (!parser.Feed(absl::string_view(bytes).substr(at, step)).ok()) break;
      at += step;
      auto reply = parser.Next();
      while (reply.ok() && reply->has_value()) reply = parser.Next();
      if (!reply.ok()) break;
    }
  }
}

}  // namespace
}  // namespace fourierkv
