// Real servers that share a Redis server, asked over gRPC.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kv_service/rpc/redis_client_metrics.h"
#include "kv_service/tiers/redis_tier.h"
#include "tests/clients/subprocess.h"
#include "tests/kv_service/redis/redis_servers.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

const std::vector<v1::SegmentForm> kExactOrCompact = {v1::SEGMENT_FORM_COMPACT,
                                                      v1::SEGMENT_FORM_EXACT};

// A server process and a client of it.
class Replica {
 public:
  explicit Replica(const std::string& redis)
      : server_("fourierkv-server",
                {"--listen", "127.0.0.1:0", "--metrics", "", "--redis", redis, "--redis-single"}) {
    auto client = KvClient::Connect(server_.WaitForAddress(), absl::Seconds(20));
    EXPECT_TRUE(client.ok()) << client.status() << server_.err();
    if (client.ok()) client_ = *std::move(client);
  }

  KvClient& client() { return *client_; }
  void Kill() {
    server_.Signal(SIGKILL);
    server_.Wait();
  }
  absl::StatusOr<v1::PutCommitted> Put(const Sequence& sequence) {
    v1::PutHeader header = MakePutHeader(SmallWireNamespace(), sequence);
    header.set_durability(v1::DURABILITY_SHARED);
    return PutSequence(*client_, header, sequence);
  }
  v1::MatchPrefixResponse Match(const Sequence& sequence) {
    v1::MatchPrefixRequest request;
    *request.mutable_namespace_() = SmallWireNamespace();
    request.mutable_token_ids()->Add(sequence.tokens().begin(), sequence.tokens().end());
    auto match = client_->MatchPrefix(request, Soon());
    EXPECT_TRUE(match.ok()) << match.status();
    return match.ok() ? *match : v1::MatchPrefixResponse();
  }

 private:
  Subprocess server_;
  std::unique_ptr<KvClient> client_;
};

TEST(RedisServiceTest, AnyReplicaServesWhatAnotherAnsweredAsSharedAlsoWhenThatIsGone) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  const RedisServer redis;
  auto a = std::make_unique<Replica>(redis.address().ToString());
  Replica b(redis.address().ToString());
  ASSERT_TRUE(a->client().PutProfile(SmallProfile(), Soon()).ok());
  const Sequence sequence(7, 3 * kS + 11);
  const auto committed = a->Put(sequence);
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->durability(), v1::DURABILITY_SHARED);
  const auto keys = KeysOf(SmallWireNamespace(), sequence);
  const auto before = Fetch(a->client(), MakeGet(keys, kExactOrCompact));
  ASSERT_TRUE(before.ok()) << before.status();
  a->Kill();

  const auto match = b.Match(sequence);  // by a server that was never told the codec profile
  ASSERT_EQ(match.segments_size(), 4);
  EXPECT_EQ(match.segments(0).tier(), v1::DURABILITY_SHARED);
  const auto after = Fetch(b.client(), MakeGet(keys, kExactOrCompact));
  ASSERT_TRUE(after.ok()) << after.status();
  ASSERT_EQ(after->blobs.size(), before->blobs.size());
  for (const auto& [where, blob] : before->blobs) {
    const auto it = after->blobs.find(where);
    ASSERT_NE(it, after->blobs.end());
    EXPECT_TRUE(std::ranges::equal(it->second.bytes.span(), blob.bytes.span()));
  }
  EXPECT_EQ(b.Put(sequence)->payload_bytes_received(), 0) << "nothing of it is asked for again";
}

TEST(RedisServiceTest, WithoutRedisTheServiceGoesOnAndSaysWhatItReached) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  RedisServer redis;
  Replica replica(redis.address().ToString());
  ASSERT_TRUE(replica.client().PutProfile(SmallProfile(), Soon()).ok());
  redis.Kill();
  const Sequence alone(8, 2 * kS);
  const auto committed = replica.Put(alone);
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->durability(), v1::DURABILITY_MEMORY);
  EXPECT_EQ(replica.Match(alone).segments_size(), 2);
  redis.Start();
  uint32_t seed = 9;
  EXPECT_TRUE(Eventually([&] {
    const auto again = replica.Put(Sequence(seed++, kS));
    return again.ok() && again->durability() == v1::DURABILITY_SHARED;
  }));
}

TEST(RedisClientMetricsTest, SayWhatTheClientOfARedisTierDid) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  const RedisServer redis;
  TestService service;
  EXPECT_TRUE(CollectRedisClients(service.core().tiers).empty()) << "without Redis there is none";
  RedisTierOptions options;
  options.client.nodes = {redis.address()};
  options.client.cluster = false;
  auto tier = OpenRedisTier(options, &service.core().profiles, &service.core().namespaces);
  ASSERT_TRUE(tier.ok()) << tier.status();
  service.core().tiers.AddTier(*std::move(tier));
  const auto values = [&] {
    std::map<std::string, double> result;
    for (const auto& family : CollectRedisClients(service.core().tiers)) {
      EXPECT_EQ(family.metric.size(), 1);
      EXPECT_EQ(family.metric[0].label[0].value, "redis");
      result[family.name] = family.metric[0].counter.value;
    }
    return result;
  };
  EXPECT_EQ(values().at("fourierkv_redis_commands_total"), 0);
  ASSERT_TRUE(service.client().Exists({Digest()}, Soon()).ok());  // asks every tier
  EXPECT_GT(values().at("fourierkv_redis_commands_total"), 0);
  EXPECT_EQ(values().at("fourierkv_redis_connects_total"), 1);
  EXPECT_EQ(values().at("fourierkv_redis_broken_connections_total"), 0);
}

}  // namespace
}  // namespace fourierkv
