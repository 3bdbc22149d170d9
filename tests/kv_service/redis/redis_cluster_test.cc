// The client and a real cluster.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kv_service/redis/hash_slot.h"
#include "tests/kv_service/redis/redis_servers.h"

namespace fourierkv {
namespace {

using absl::StatusCode;

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

std::unique_ptr<RedisClient> Client(RedisCluster& cluster) {
  auto client = RedisClient::Create(TestClientOptions({cluster.server(0).address()}, true));
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

absl::StatusOr<RedisReply> Set(RedisClient& client, const std::string& key,
                               const std::string& value) {
  return client.RunOne(RedisCommand::Of({"SET", key, value}), Soon());
}

std::string Get(RedisClient& client, const std::string& key) {
  const auto reply = client.RunOne(RedisCommand::Of({"GET", key}), Soon());
  return reply.ok() ? reply->text : reply.status().ToString();
}

// A key whose slot was given to that server when the cluster was formed.
std::string KeyOf(const RedisCluster& cluster, int owner, int n = 0) {
  for (int i = 0;; ++i) {
    std::string key = absl::StrCat("key", i);
    if (cluster.OwnerOf(key) == owner && n-- == 0) return key;
  }
}

TEST(RedisClusterTest, SlotsMoveUnderTheClientAndItFollows) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  RedisCluster cluster(3, 0);
  const auto client = Client(cluster);

  // Servers and client agree on slots.
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::vector<RedisCommand> sets;
  for (int i = 0; i < 200; ++i) {
    std::string key;
    for (size_t n = random() % 20; n > 0; --n) key += "{}abc"[random() % 5];
    EXPECT_EQ(cluster.server(0).Do({"CLUSTER", "KEYSLOT", key}).integer, HashSlot(key)) << key;
    sets.push_back(RedisCommand::Of({"SET", key, "v"}));
  }
  for (const auto& reply : client->Run(sets, Soon())) EXPECT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(client->metrics().moved, 0);

  // A slot that is being migrated: some of its keys are here, some there.
  const std::string stays = KeyOf(cluster, 0);
  const int slot = HashSlot(stays);
  const std::string goes = absl::StrCat("{", stays, "}goes");
  const std::string fresh = absl::StrCat("{", stays, "}fresh");
  ASSERT_TRUE(Set(*client, stays, "1").ok());
  ASSERT_TRUE(Set(*client, goes, "2").ok());
  ASSERT_FALSE(cluster.server(1)
                   .Do({"CLUSTER", "SETSLOT", absl::StrCat(slot), "IMPORTING", cluster.IdOf(0)})
                   .IsError());
  ASSERT_FALSE(cluster.server(0)
                   .Do({"CLUSTER", "SETSLOT", absl::StrCat(slot), "MIGRATING", cluster.IdOf(1)})
                   .IsError());
  const auto migrate = [&](const std::string& key) {
    const NodeAddress to = cluster.server(1).address();
    return cluster.server(0).Do({"MIGRATE", to.host, absl::StrCat(to.port), key, "0", "5000"});
  };
  ASSERT_EQ(migrate(goes).text, "OK");
  EXPECT_EQ(Get(*client, stays), "1");
  EXPECT_EQ(client->metrics().asked, 0);
  EXPECT_EQ(Get(*client, goes), "2");
  EXPECT_EQ(client->metrics().asked, 1);
  EXPECT_TRUE(Set(*client, fresh, "3").ok());
  EXPECT_EQ(client->metrics().asked, 2);
  EXPECT_EQ(client->metrics().moved, 0);

  // The migration ends.
  ASSERT_EQ(migrate(stays).text, "OK");
  cluster.AssignSlot(slot, 1);
  EXPECT_EQ(Get(*client, stays), "1");
  EXPECT_EQ(client->metrics().moved, 1);
  EXPECT_EQ(Get(*client, goes), "2");
  EXPECT_EQ(Get(*client, fresh), "3");
  EXPECT_EQ(client->metrics().moved, 1) << "it was learnt";
}

TEST(RedisClusterTest, AKilledMasterIsReplacedAndTheOthersServeMeanwhile) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  RedisCluster cluster(3, 1);  // the replica is of server 0
  const auto client = Client(cluster);
  const std::string lost = KeyOf(cluster, 0);
  const std::string other = KeyOf(cluster, 1);
  ASSERT_TRUE(Set(*client, lost, "old").ok());
  ASSERT_EQ(cluster.server(0).Do({"WAIT", "1", "5000"}).type, RedisReply::Type::kInteger);
  ASSERT_TRUE(Eventually([&] { return cluster.server(3).Do({"DBSIZE"}).integer == 1; }))
      << "the replica has it";
  ASSERT_TRUE(Set(*client, other, "there").ok());

  cluster.server(0).Kill();
  const auto failed =
      client->RunOne(RedisCommand::Of({"GET", lost}), absl::Now() + absl::Seconds(2));
  EXPECT_EQ(failed.status().code(), StatusCode::kUnavailable) << failed.status();
  EXPECT_EQ(Get(*client, other), "there");
  EXPECT_TRUE(Eventually([&] { return Get(*client, lost) == "old"; }))
      << "the replica took over: " << Get(*client, lost);
  EXPECT_TRUE(Set(*client, lost, "new").ok());
}

TEST(RedisClusterTest, AStalledMasterHoldsOnlyWhatIsItsOwnAndNotForLong) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  RedisCluster cluster(3, 0, {"--cluster-require-full-coverage", "no"});
  const auto client = Client(cluster);
  const std::string stuck = KeyOf(cluster, 2);
  const std::string other = KeyOf(cluster, 1);
  ASSERT_TRUE(Set(*client, stuck, "1").ok());
  ASSERT_TRUE(Set(*client, other, "2").ok());
  cluster.server(2).Signal(SIGSTOP);
  const auto late =
      client->RunOne(RedisCommand::Of({"GET", stuck}), absl::Now() + absl::Milliseconds(200));
  EXPECT_EQ(late.status().code(), StatusCode::kDeadlineExceeded) << late.status();
  EXPECT_FALSE(client->RunOne(RedisCommand::Of({"GET", stuck}), absl::InfiniteFuture()).ok());
  // Both in one call: the stalled node costs the other's answer nothing but patience.
  const std::vector<RedisCommand> both = {RedisCommand::Of({"GET", stuck}),
                                          RedisCommand::Of({"GET", other})};
  const auto replies = client->Run(both, Soon());
  EXPECT_FALSE(replies[0].ok());
  ASSERT_TRUE(replies[1].ok()) << replies[1].status();
  EXPECT_EQ(replies[1]->text, "2");
  cluster.server(2).Signal(SIGCONT);
  EXPECT_TRUE(Eventually([&] { return Get(*client, stuck) == "1"; })) << Get(*client, stuck);
}

TEST(RedisClusterTest, TheWholeClusterGoesAndComesBack) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  RedisCluster cluster(3, 0);
  const auto client = Client(cluster);
  const std::string key = KeyOf(cluster, 1);
  ASSERT_TRUE(Set(*client, key, "1").ok());
  for (int i = 0; i < 3; ++i) cluster.server(i).Kill();
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(Set(*client, key, "2").status().code(), StatusCode::kUnavailable);
  }
  for (int i = 0; i < 3; ++i) cluster.server(i).Start();
  EXPECT_TRUE(Eventually([&] { return Set(*client, key, "3").ok(); }))
      << Set(*client, key, "3").status();
}

}  // namespace
}  // namespace fourierkv
