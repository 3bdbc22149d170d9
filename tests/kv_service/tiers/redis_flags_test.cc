#include "kv_service/tiers/redis_flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <limits>
#include <string>

#include "tests/compute/model/temp_folder.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

TEST(RedisFlagsTest, NoNodeMeansNoTier) {
  const auto options = MakeRedisTierOptions({});
  ASSERT_TRUE(options.ok());
  EXPECT_FALSE(options->has_value());
}

TEST(RedisFlagsTest, FlagsBecomeOptions) {
  const TempFolder folder;
  folder.Write("password", "first\n");
  CLI::App app;
  RedisFlags flags;
  DeclareRedisFlags(app, flags);
  app.parse("--redis a:1,b:2 --redis-user u --redis-password-file " + folder.path() +
            "/password --redis-prefix p --redis-ttl-seconds 60 --redis-wait-replicas 1 "
            "--redis-connections 3");
  const auto made = MakeRedisTierOptions(flags);
  ASSERT_TRUE(made.ok()) << made.status();
  const RedisTierOptions& options = **made;
  EXPECT_EQ(options.client.nodes, (std::vector<NodeAddress>{{"a", 1}, {"b", 2}}));
  EXPECT_TRUE(options.client.cluster);
  EXPECT_EQ(options.client.connections_per_node, 3);
  EXPECT_EQ(options.client.connection.username, "u");
  EXPECT_EQ(*options.client.connection.password(), "first");
  EXPECT_EQ(options.key_prefix, "p");
  EXPECT_EQ(options.ttl, absl::Minutes(1));
  EXPECT_EQ(options.wait_replicas, 1);
  folder.Write("password", "second");
  EXPECT_EQ(*options.client.connection.password(), "second") << "it was rotated";
}

TEST(RedisFlagsTest, WhatCannotBeIsRefusedByName) {
  const TempFolder folder;
  folder.Write("empty", "\nx\n");
  folder.Write("large", std::string(5000, 'x'));
  const auto with = [&](const std::function<void(RedisFlags&)>& change) {
    RedisFlags flags;
    flags.nodes = "a:1";
    change(flags);
    const auto options = MakeRedisTierOptions(flags);
    EXPECT_TRUE(absl::IsInvalidArgument(options.status()));
    return std::string(options.status().message());
  };
  EXPECT_THAT(with([](RedisFlags& f) { f.nodes = "a"; }), HasSubstr("--redis"));
  EXPECT_THAT(with([](RedisFlags& f) { f.nodes = "a:1,b:1", f.single = true; }),
              HasSubstr("--redis-single"));
  EXPECT_THAT(with([](RedisFlags& f) { f.user = "u"; }), HasSubstr("--redis-password-file"));
  for (const char* name : {"/none", "/empty", "/large", ""}) {
    EXPECT_THAT(with([&](RedisFlags& f) { f.password_file = folder.path() + name; }),
                HasSubstr("--redis-password-file"));
  }
  EXPECT_THAT(with([](RedisFlags& f) { f.ttl_seconds = std::numeric_limits<double>::quiet_NaN(); }),
              HasSubstr("--redis-ttl-seconds"));
}

}  // namespace
}  // namespace fourierkv
