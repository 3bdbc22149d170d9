// The Redis tier and a real cluster.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kv_service/redis/hash_slot.h"
#include "tests/kv_service/tiers/redis_fixture.h"

namespace fourierkv {
namespace {

constexpr SegmentForm kExact = SegmentForm::kExact;

std::string ManifestOf(const StoredSegment& segment) {
  return absl::StrCat("fourierkv:{", segment.key.ToHex(), "}:exact");
}

// What of `chain` is at that server, as the cluster was formed.
std::vector<StoredSegment> At(const RedisCluster& cluster, int server,
                              const std::vector<StoredSegment>& chain) {
  std::vector<StoredSegment> there;
  for (const StoredSegment& segment : chain) {
    if (cluster.OwnerOf(ManifestOf(segment)) == server) there.push_back(segment);
  }
  return there;
}

TEST(RedisClusterTierTest, ReplicasShareASegmentWhileItsSlotMoves) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  RedisCluster cluster(3, 0);
  RedisReplica a(TestClientOptions({cluster.server(0).address()}, true));
  RedisReplica b(TestClientOptions({cluster.server(2).address()}, true));
  std::mt19937 rng(std::random_device{}());
  const auto chain = RedisTestChain(rng, 24, a.budget());
  ASSERT_TRUE(a.tier().Store(chain, SoonEnough()).ok());
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(At(cluster, i, chain).empty());
  EXPECT_EQ(b.Described(chain), FormsOf(chain));
  EXPECT_TRUE(b.HoldsAll(chain));

  // Half of a segment's keys are at one server, half at the other.
  const std::vector<StoredSegment> moving = {At(cluster, 0, chain).front()};
  const int slot = HashSlot(ManifestOf(moving[0]));
  const NodeAddress to = cluster.server(1).address();
  cluster.server(1).Do({"CLUSTER", "SETSLOT", absl::StrCat(slot), "IMPORTING", cluster.IdOf(0)});
  cluster.server(0).Do({"CLUSTER", "SETSLOT", absl::StrCat(slot), "MIGRATING", cluster.IdOf(1)});
  const auto keys = cluster.server(0).Do({"CLUSTER", "GETKEYSINSLOT", absl::StrCat(slot), "100"});
  ASSERT_GT(keys.elements.size(), 3);
  const auto migrate = [&](const std::string& key) {
    EXPECT_EQ(
        cluster.server(0).Do({"MIGRATE", to.host, absl::StrCat(to.port), key, "0", "5000"}).text,
        "OK");
  };
  for (size_t i = 0; i < keys.elements.size(); i += 2) migrate(keys.elements[i].text);
  EXPECT_EQ(b.Described(moving), 2);
  EXPECT_TRUE(b.HoldsAll(moving));
  EXPECT_TRUE(a.tier().Store(moving, SoonEnough()).ok());
  for (size_t i = 1; i < keys.elements.size(); i += 2) migrate(keys.elements[i].text);
  cluster.AssignSlot(slot, 1);
  EXPECT_TRUE(a.HoldsAll(moving));
  EXPECT_TRUE(b.HoldsAll(chain));
  ASSERT_TRUE(a.tier().Remove(KeysOfChain(moving), SoonEnough()).ok());
  EXPECT_EQ(b.Described(moving), 0);
}

TEST(RedisClusterTierTest, WhatADeadNodeHadIsMissingAndTheRestServed) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  RedisCluster cluster(3, 0, {"--cluster-require-full-coverage", "no"});
  RedisReplica replica(TestClientOptions(cluster.addresses(), true));
  std::mt19937 rng(std::random_device{}());
  const auto chain = RedisTestChain(rng, 24, replica.budget());
  ASSERT_TRUE(replica.tier().Store(chain, SoonEnough()).ok());
  cluster.server(0).Kill();
  const auto lost = At(cluster, 0, chain);
  auto kept = At(cluster, 1, chain);
  for (const StoredSegment& segment : At(cluster, 2, chain)) kept.push_back(segment);
  EXPECT_EQ(replica.Described(chain), FormsOf(kept));
  EXPECT_TRUE(replica.HoldsAll(kept));
  EXPECT_EQ(replica.Load(lost[0], kExact, SoonEnough()).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_TRUE(replica.tier().Stats().healthy);
  cluster.server(0).Start();  // empty
  EXPECT_TRUE(Eventually([&] { return replica.tier().Store(chain, SoonEnough()).ok(); }));
  EXPECT_TRUE(replica.HoldsAll(chain));
}

TEST(RedisClusterTierTest, AnAcknowledgementMayMeanThatReplicasHaveItAndSurvivesTheirMaster) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  RedisCluster cluster(3, 3);
  RedisReplica one(TestClientOptions(cluster.addresses(), true), 1);
  RedisReplica two(TestClientOptions(cluster.addresses(), true), 2);
  std::mt19937 rng(std::random_device{}());
  const auto chain = RedisTestChain(rng, 12, one.budget());
  const absl::Status stored = one.tier().Store(chain, SoonEnough());
  ASSERT_TRUE(stored.ok()) << stored;
  const auto more = RedisTestChain(rng, 1, one.budget());
  EXPECT_EQ(two.tier().Store(more, SoonEnough()).code(), absl::StatusCode::kUnavailable)
      << "there is only one replica of each master";
  cluster.server(1).Kill();
  EXPECT_TRUE(Eventually([&] { return one.Described(chain) == FormsOf(chain); }));
  EXPECT_TRUE(one.HoldsAll(chain)) << "nothing that was acknowledged is lost";
}

}  // namespace
}  // namespace fourierkv
