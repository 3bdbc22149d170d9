// Whatever happens to values in Redis, no wrong byte is served.

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kv_service/tiers/redis_manifest.h"
#include "tests/kv_service/tiers/redis_fixture.h"

// How many random damages; the long suite has 10,000.
#ifndef FOURIERKV_DAMAGE_ROUNDS
#define FOURIERKV_DAMAGE_ROUNDS 300
#endif

namespace fourierkv {
namespace {

constexpr SegmentForm kForms[] = {SegmentForm::kExact, SegmentForm::kCompact};

TEST(RedisDamageTest, EveryFlippedBitOfEveryValueIsFoundAndItsRecordDropped) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  const RedisServer server;
  const RedisClientOptions options = TestClientOptions({server.address()}, false);
  const auto redis = RedisClient::Create(options);
  ASSERT_TRUE(redis.ok());
  const auto run = [&](std::vector<std::string> words) {
    auto reply = (*redis)->RunOne(RedisCommand::Of(std::move(words)), SoonEnough());
    EXPECT_TRUE(reply.ok()) << reply.status();
    return reply.ok() ? *std::move(reply) : RedisReply();
  };
  RedisReplica replica(options);
  const RedisKeys names("fourierkv");
  const std::vector<StoredSegment> chain = RedisTestChain(rng, 2, replica.budget());
  int damaged = 0;
  int gone = 0;
  for (int i = 0; i < FOURIERKV_DAMAGE_ROUNDS; ++i) {
    ASSERT_TRUE(replica.tier().Store(chain, SoonEnough()).ok());
    const StoredSegment& segment = chain[rng() % chain.size()];
    const SegmentForm form = kForms[rng() % std::size(kForms)];
    // A manifest that was damaged before left chunks behind that nothing refers to.
    const RedisRecordName name = {segment.key, form};
    const auto manifest = DecodeRedisManifest(run({"GET", names.Manifest(name)}).text);
    ASSERT_TRUE(manifest.ok()) << manifest.status();
    std::vector<std::string> keys = {names.Manifest(name)};
    for (int64_t n = 0; n < manifest->place.chunks(); ++n) {
      keys.push_back(names.Chunk(name, manifest->place.generation, n));
    }
    const std::string key = keys[rng() % keys.size()];
    std::string value = run({"GET", key}).text;
    const size_t at = rng() % value.size();
    std::string what;
    switch (rng() % 8) {
      case 0:  // cut off
        what = absl::StrCat("cut at ", at);
        value.resize(at);
        break;
      case 1:
        what = "longer";
        value += static_cast<char>(rng());
        break;
      default:
        what = absl::StrCat("bit flipped in byte ", at);
        value[at] = static_cast<char>(value[at] ^ (1 << (rng() % 8)));
    }
    SCOPED_TRACE(testing::Message() << i << ": " << key << ": " << what);
    run({"SET", key, value, "KEEPTTL"});
    const auto loaded = replica.Load(segment, form, SoonEnough());
    ASSERT_FALSE(loaded.ok());
    damaged += absl::IsDataLoss(loaded.status()) ? 1 : 0;
    gone += absl::IsNotFound(loaded.status()) ? 1 : 0;
    ASSERT_EQ(replica.Load(segment, form, SoonEnough()).status().code(),
              absl::StatusCode::kNotFound)
        << "it is dropped";
    ASSERT_EQ(replica.Described(chain), FormsOf(chain) - 1);
  }
  EXPECT_EQ(damaged, FOURIERKV_DAMAGE_ROUNDS);
  EXPECT_EQ(gone, 0);
  EXPECT_EQ(replica.tier().Stats().damaged_records, FOURIERKV_DAMAGE_ROUNDS);
  ASSERT_TRUE(replica.tier().Store(chain, SoonEnough()).ok());
  EXPECT_TRUE(replica.HoldsAll(chain));
}

// A valid record under the name of another one.
TEST(RedisDamageTest, ValuesThatChangedPlacesAreFound) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  std::mt19937 rng(std::random_device{}());
  const RedisServer server;
  RedisReplica replica(TestClientOptions({server.address()}, false));
  const std::vector<StoredSegment> chain = RedisTestChain(rng, 2, replica.budget());
  ASSERT_TRUE(replica.tier().Store(chain, SoonEnough()).ok());
  const auto name = [&](int i) {
    return absl::StrCat("fourierkv:{", chain[i].key.ToHex(), "}:exact");
  };
  for (const RedisReply& key : server.Do({"KEYS", name(0) + "*"}).elements) {
    const std::string to = name(1) + key.text.substr(name(0).size());
    server.Do({"COPY", key.text, to, "REPLACE"});
  }
  EXPECT_EQ(replica.Load(chain[1], SegmentForm::kExact, SoonEnough()).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(replica.Load(chain[1], SegmentForm::kExact, SoonEnough()).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_TRUE(replica.Load(chain[0], SegmentForm::kExact, SoonEnough()).ok());
}

}  // namespace
}  // namespace fourierkv
