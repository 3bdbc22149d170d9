// The Redis tier and one real server.

#include "kv_service/tiers/redis_tier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kv_service/core/event_log.h"
#include "kv_service/core/segment_record.h"
#include "tests/kv_service/tiers/redis_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
constexpr SegmentForm kExact = SegmentForm::kExact;
constexpr SegmentForm kCompact = SegmentForm::kCompact;

class RedisTierTest : public testing::Test {
 protected:
  void SetUp() override {
    FOURIERKV_NEEDS_REDIS_SERVER();
    server_ = std::make_unique<RedisServer>();
    replica_ = NewReplica();
    chain_ = RedisTestChain(rng_, 3, *budget_, 5);
  }

  std::unique_ptr<RedisReplica> NewReplica() {
    return std::make_unique<RedisReplica>(TestClientOptions({server_->address()}, false));
  }
  SegmentTier& tier() { return replica_->tier(); }
  std::vector<std::string> RedisKeysLike(const std::string& pattern) {
    std::vector<std::string> keys;
    for (const RedisReply& key : server_->Do({"KEYS", pattern}).elements) keys.push_back(key.text);
    return keys;
  }

  std::mt19937 rng_{std::random_device()()};
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create("test", int64_t{64} << 20);
  std::unique_ptr<RedisServer> server_;
  std::unique_ptr<RedisReplica> replica_;
  std::vector<StoredSegment> chain_;
};

TEST(RedisTierOptionsTest, AreChecked) {
  ProfileStore profiles;
  NamespaceDirectory namespaces(&profiles);
  RedisTierOptions good;
  good.client = TestClientOptions({{"127.0.0.1", 1}}, false);
  EXPECT_TRUE(OpenRedisTier(good, &profiles, &namespaces).ok());
  for (const auto& spoil : std::vector<std::function<void(RedisTierOptions&)>>{
           [](RedisTierOptions& o) { o.key_prefix = ""; },
           [](RedisTierOptions& o) { o.key_prefix = "a{b"; },
           [](RedisTierOptions& o) { o.key_prefix = std::string(65, 'a'); },
           [](RedisTierOptions& o) { o.key_prefix = "a b"; },
           [](RedisTierOptions& o) { o.ttl = absl::ZeroDuration(); },
           [](RedisTierOptions& o) { o.ttl = absl::InfiniteDuration(); },
           [](RedisTierOptions& o) { o.chunk_bytes = 0; },
           [](RedisTierOptions& o) { o.chunk_bytes = int64_t{9} << 20; },
           [](RedisTierOptions& o) { o.wait_replicas = -1; },
           [](RedisTierOptions& o) { o.client.nodes.clear(); }}) {
    RedisTierOptions options = good;
    spoil(options);
    EXPECT_EQ(OpenRedisTier(options, &profiles, &namespaces).status().code(),
              StatusCode::kInvalidArgument);
  }
}

TEST_F(RedisTierTest, WhatOneReplicaStoresEveryOtherHas) {
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  EXPECT_EQ(tier().durability(), Durability::kShared);
  const auto other = NewReplica();  // which has never seen the codec profile
  const auto described = other->tier().Describe(KeysOfChain(chain_), SoonEnough());
  ASSERT_TRUE(described.ok()) << described.status();
  for (size_t i = 0; i < chain_.size(); ++i) {
    ASSERT_TRUE((*described)[i].has_value());
    const TierSegment& segment = *(*described)[i];
    EXPECT_EQ(segment.segment.key, chain_[i].key);
    EXPECT_EQ(segment.segment.parent, chain_[i].parent);
    EXPECT_EQ(segment.segment.index, chain_[i].index);
    EXPECT_EQ(segment.segment.tokens, chain_[i].tokens);
    EXPECT_EQ(segment.segment.tail, chain_[i].tail);
    EXPECT_EQ(segment.segment.context->root, chain_[i].context->root);
    for (const SegmentForm form : kHeldForms) {
      const FormPtr& held = chain_[i].forms[form];
      EXPECT_EQ(segment.forms[form].bytes, held == nullptr ? 0 : held->bytes());
      if (held != nullptr) {
        EXPECT_EQ(segment.forms[form].max_relative_error, held->max_relative_error());
      }
    }
  }
  EXPECT_TRUE(other->HoldsAll(chain_));
  EXPECT_TRUE(other->profiles().Get(chain_[0].context->layout->id()).ok());
  EXPECT_EQ(other->tier().Stats().damaged_records, 0);
}

TEST_F(RedisTierTest, WhatWasNeverStoredIsNotFound) {
  const auto described = tier().Describe(KeysOfChain(chain_), SoonEnough());
  ASSERT_TRUE(described.ok()) << described.status();
  for (const auto& segment : *described) EXPECT_FALSE(segment.has_value());
  EXPECT_EQ(replica_->Load(chain_[0], kExact, SoonEnough()).status().code(), StatusCode::kNotFound);
  EXPECT_TRUE(tier().Remove(KeysOfChain(chain_), SoonEnough()).ok());
  EXPECT_TRUE(tier().Describe({}, SoonEnough())->empty());
  EXPECT_TRUE(tier().Load({}, *budget_, SoonEnough()).empty());
  EXPECT_TRUE(tier().Store({}, SoonEnough()).ok());
  EXPECT_TRUE(tier().Stats().healthy);
}

TEST_F(RedisTierTest, StoringAgainChangesNothingAndFormsCanBeAdded) {
  const FormPtr compact = chain_[0].forms[kCompact];
  chain_[0].forms[kCompact] = nullptr;
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  const auto keys = RedisKeysLike("*");
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  EXPECT_THAT(RedisKeysLike("*"), testing::UnorderedElementsAreArray(keys));
  chain_[0].forms[kCompact] = compact;
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  EXPECT_GT(RedisKeysLike("*").size(), keys.size());
  EXPECT_TRUE(replica_->HoldsAll(chain_));
}

TEST_F(RedisTierTest, TheLowerErrorBoundIsKept) {
  for (const float bound : {0.5f, 0.25f, 0.75f}) {
    for (StoredSegment& segment : chain_) segment.error_bound = bound;
    ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  }
  const auto all = tier().Describe(KeysOfChain(chain_), SoonEnough());
  ASSERT_TRUE(all.ok());
  for (const auto& described : *all) {
    ASSERT_TRUE(described.has_value());
    EXPECT_EQ(described->segment.error_bound, 0.25f);
  }
  EXPECT_TRUE(replica_->HoldsAll(chain_));
}

TEST_F(RedisTierTest, ReplicasThatStoreTheSameAtOnceLeaveOneWholeRecord) {
  std::vector<std::unique_ptr<RedisReplica>> replicas;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) replicas.push_back(NewReplica());
  for (auto& replica : replicas) {
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) {
        const absl::Status stored = replica->tier().Store(chain_, SoonEnough());
        EXPECT_TRUE(stored.ok()) << stored;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(replica_->HoldsAll(chain_));
  size_t chunks = 0;
  for (const StoredSegment& segment : chain_) {
    for (const SegmentForm form : {kExact, kCompact}) {
      if (segment.forms[form] == nullptr) continue;
      chunks += static_cast<size_t>((RecordWriter(segment, form).bytes() + kTestChunkBytes - 1) /
                                    kTestChunkBytes);
    }
  }
  EXPECT_EQ(RedisKeysLike("*").size(), chunks + FormsOf(chain_) + 1) << "nothing of the losers";
}

TEST_F(RedisTierTest, EverythingButProfilesExpiresAndUseMakesItLiveLonger) {
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  const auto keys = RedisKeysLike("fourierkv:{*");
  ASSERT_FALSE(keys.empty());
  const auto shortest = [&] {
    int64_t least = INT64_MAX;
    for (const std::string& key : keys) {
      least = std::min(least, server_->Do({"PTTL", key}).integer);
    }
    return absl::Milliseconds(least);
  };
  const auto age = [&] {
    for (const std::string& key : keys) server_->Do({"PEXPIRE", key, "60000"});
  };
  EXPECT_GT(shortest(), absl::Hours(23));
  EXPECT_LE(shortest(), absl::Hours(24));
  EXPECT_EQ(server_->Do({"PTTL", "fourierkv:profiles"}).integer, -1);
  age();
  ASSERT_TRUE(replica_->HoldsAll(chain_));
  EXPECT_GT(shortest(), absl::Hours(23)) << "loading is using";
  age();
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  EXPECT_GT(shortest(), absl::Hours(23)) << "storing again is using";
  age();
  tier().Touch(KeysOfChain(chain_), absl::InfinitePast());
  EXPECT_TRUE(Eventually([&] { return shortest() > absl::Hours(23); }));
  tier().Touch(KeysOfChain(chain_), absl::Now() + absl::Hours(100));
  EXPECT_TRUE(Eventually([&] { return shortest() > absl::Hours(99); })) << "though just used";
}

TEST_F(RedisTierTest, WhatIsPinnedForLongerLivesThatLongWhoeverUsesIt) {
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  const auto shortest = [&] {
    int64_t least = INT64_MAX;
    for (const std::string& key : RedisKeysLike("fourierkv:{*")) {
      least = std::min(least, server_->Do({"PTTL", key}).integer);
    }
    return absl::Milliseconds(least);
  };
  tier().Touch(KeysOfChain(chain_), absl::Now() + absl::Hours(100));
  ASSERT_TRUE(Eventually([&] { return shortest() > absl::Hours(99); }));
  const auto other = NewReplica();  // which does not know of it
  ASSERT_TRUE(other->HoldsAll(chain_));
  EXPECT_GT(shortest(), absl::Hours(99)) << "loaded";
  ASSERT_TRUE(other->tier().Store(chain_, SoonEnough()).ok());
  EXPECT_GT(shortest(), absl::Hours(99)) << "stored again";
  for (StoredSegment& segment : chain_) segment.error_bound = 0.125f;
  ASSERT_TRUE(other->tier().Store(chain_, SoonEnough()).ok());
  EXPECT_GT(shortest(), absl::Hours(99)) << "described anew";
  // By another's touch, which is done when one that lengthens, asked for after it, is.
  other->tier().Touch(KeysOfChain(chain_), absl::InfinitePast());
  other->tier().Touch(std::span(&chain_[0].key, 1), absl::Now() + absl::Hours(200));
  EXPECT_TRUE(Eventually([&] {
    const std::string manifest = absl::StrCat("fourierkv:{", chain_[0].key.ToHex(), "}:exact");
    return server_->Do({"PTTL", manifest}).integer > absl::ToInt64Milliseconds(absl::Hours(199));
  }));
  EXPECT_GT(shortest(), absl::Hours(99)) << "touched";
}

using RedisExpiryTest = RedisTierTest;

TEST_F(RedisExpiryTest, WhatHasATimeLivesNoLongerHoweverMuchItIsUsed) {
  for (StoredSegment& segment : chain_) segment.expires = absl::Now() + absl::Minutes(10);
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  const auto longest = [&] {
    int64_t most = -1;
    for (const std::string& key : RedisKeysLike("fourierkv:{*")) {
      most = std::max(most, server_->Do({"PTTL", key}).integer);
    }
    return absl::Milliseconds(most);
  };
  const absl::Duration limit = absl::Minutes(15);  // chunks outlive their manifest
  EXPECT_GT(longest(), absl::Minutes(9));
  EXPECT_LE(longest(), limit);
  ASSERT_TRUE(replica_->HoldsAll(chain_));
  EXPECT_LE(longest(), limit) << "loading is using";
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  EXPECT_LE(longest(), limit) << "storing again is using";
  const auto described = tier().Describe(KeysOfChain(chain_), SoonEnough());
  ASSERT_TRUE(described.ok() && described->front().has_value());
  EXPECT_LE(absl::AbsDuration(described->front()->segment.expires - chain_[0].expires),
            absl::Milliseconds(1));
  // For longer, and then for ever: as all that is used.
  for (StoredSegment& segment : chain_) segment.expires += absl::Hours(2);
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  EXPECT_GT(longest(), absl::Hours(2));
  EXPECT_LE(longest(), absl::Hours(2) + limit);
  for (StoredSegment& segment : chain_) segment.expires = absl::InfiniteFuture();
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  EXPECT_GT(longest(), absl::Hours(23));
  ASSERT_TRUE(replica_->HoldsAll(chain_));
}

TEST_F(RedisExpiryTest, WhatIsOverTimeIsMissing) {
  for (StoredSegment& segment : chain_) segment.expires = absl::Now() + absl::Milliseconds(300);
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  EXPECT_TRUE(Eventually([&] {
    const auto described = tier().Describe(KeysOfChain(chain_), SoonEnough());
    return described.ok() && !described->front().has_value();
  }));
}

TEST_F(RedisTierTest, TellsWhatItStoredAndDeletedItself) {
  EventLog log;
  tier().Observe(&log);
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  std::vector<StoreEvent> events;
  log.Read(0, 100, absl::InfinitePast(), events);
  ASSERT_EQ(events.size(), chain_.size());
  for (size_t i = 0; i < chain_.size(); ++i) {
    EXPECT_EQ(events[i].kind, StoreEventKind::kStored);
    EXPECT_EQ(events[i].tier, Durability::kShared);
    EXPECT_EQ(events[i].key, chain_[i].key);
    EXPECT_EQ(events[i].bytes_held(), chain_[i].bytes());
  }
  ASSERT_TRUE(tier().Remove(std::span(&chain_[1].key, 1), SoonEnough()).ok());
  ASSERT_TRUE(tier().Remove(std::span(&chain_[1].key, 1), SoonEnough()).ok());
  events.clear();
  log.Read(chain_.size(), 100, absl::InfinitePast(), events);
  ASSERT_EQ(events.size(), 1) << "what was not there was not removed";
  EXPECT_EQ(events[0].kind, StoreEventKind::kRemoved);
  EXPECT_EQ(events[0].key, chain_[1].key);
}

TEST_F(RedisTierTest, APartThatRedisEvictedMakesTheRecordMissingUntilItIsStoredAgain) {
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  const std::string manifest = absl::StrCat("fourierkv:{", chain_[1].key.ToHex(), "}:exact");
  const auto chunks = RedisKeysLike(manifest + ":*");
  ASSERT_GT(chunks.size(), 2);
  server_->Do({"DEL", chunks[rng_() % chunks.size()]});
  EXPECT_EQ(replica_->Load(chain_[1], kExact, SoonEnough()).status().code(), StatusCode::kNotFound);
  EXPECT_TRUE(RedisKeysLike(manifest + "*").empty()) << "the rest makes room";
  EXPECT_EQ(replica_->Described(chain_), FormsOf(chain_) - 1);
  EXPECT_EQ(tier().Stats().damaged_records, 0);
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  EXPECT_TRUE(replica_->HoldsAll(chain_));
  // Whoever stores notices, too.
  server_->Do({"DEL", RedisKeysLike(manifest + ":*").front()});
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  EXPECT_TRUE(replica_->HoldsAll(chain_));
}

TEST_F(RedisTierTest, AWriterThatDiesHalfWayIsNeverSeen) {
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  // All chunks, but no manifest.
  for (const std::string& key : RedisKeysLike("fourierkv:{*")) {
    if (absl::EndsWith(key, ":exact") || absl::EndsWith(key, ":compact")) {
      server_->Do({"DEL", key});
    }
  }
  EXPECT_EQ(replica_->Described(chain_), 0);
  EXPECT_EQ(replica_->Load(chain_[0], kExact, SoonEnough()).status().code(), StatusCode::kNotFound);
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  EXPECT_TRUE(replica_->HoldsAll(chain_));
}

TEST_F(RedisTierTest, RemovedSegmentsAreGoneAndTheOthersStay) {
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  const std::vector<BlockKey> keys = {chain_[2].key, chain_[3].key};
  ASSERT_TRUE(tier().Remove(keys, SoonEnough()).ok());
  for (const BlockKey& key : keys) {
    EXPECT_TRUE(RedisKeysLike(absl::StrCat("*", key.ToHex(), "*")).empty());
  }
  EXPECT_EQ(replica_->Load(chain_[2], kExact, SoonEnough()).status().code(), StatusCode::kNotFound);
  EXPECT_TRUE(replica_->HoldsAll(std::span(chain_).first(2)));
}

TEST_F(RedisTierTest, ABudgetWithoutRoomRefusesALoadAndKeepsTheRecord) {
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  const auto tight = MemoryBudget::Create("tight", 10'000);
  const TierWant want{.segment = &chain_[0], .form = kExact};
  const auto refused = tier().Load(std::span(&want, 1), *tight, SoonEnough());
  EXPECT_EQ(refused[0].status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(tight->used(), 0);
  EXPECT_TRUE(replica_->HoldsAll(chain_));
}

TEST_F(RedisTierTest, AFullServerTakesNothingAndShowsNothingHalf) {
  server_->Do({"CONFIG", "SET", "maxmemory", "1mb"});
  server_->Do({"CONFIG", "SET", "maxmemory-policy", "noeviction"});
  const absl::Status stored = tier().Store(chain_, SoonEnough());
  EXPECT_EQ(stored.code(), StatusCode::kResourceExhausted) << stored;
  EXPECT_EQ(replica_->Described(chain_), 0);
  EXPECT_TRUE(tier().Stats().healthy);
  server_->Do({"CONFIG", "SET", "maxmemory", "0"});
  EXPECT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  EXPECT_TRUE(replica_->HoldsAll(chain_));
}

TEST_F(RedisTierTest, ProfilesAreSharedAndDamagedOnesDropped) {
  const ProfileLayout& profile = *chain_[0].context->layout;
  ASSERT_TRUE(tier().StoreProfile(profile, SoonEnough()).ok());
  const auto other = NewReplica();
  EXPECT_THAT(*other->tier().LoadProfiles(SoonEnough()),
              testing::ElementsAre(profile.profile().ToJson()));
  EXPECT_TRUE(other->profiles().Get(profile.id()).ok());
  server_->Do({"HSET", "fourierkv:profiles", profile.id().ToHex(), "{}"});
  const auto third = NewReplica();
  EXPECT_TRUE(third->tier().LoadProfiles(SoonEnough())->empty());
  EXPECT_EQ(third->tier().Stats().damaged_records, 1);
  EXPECT_EQ(server_->Do({"HLEN", "fourierkv:profiles"}).integer, 0);
}

TEST_F(RedisTierTest, SegmentsWhoseProfileNobodyKnowsAreNotDescribed) {
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  server_->Do({"DEL", "fourierkv:profiles"});
  const auto other = NewReplica();
  EXPECT_EQ(other->Described(chain_), 0);
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());  // by one who knows it
  EXPECT_EQ(other->Described(chain_), FormsOf(chain_));
}

TEST(RedisTierAclTest, TheDocumentedRightsAreEnough) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  const RedisServer server(
      false,
      {"--user",  "cache", "on",       ">word",  "~fourierkv:*", "+get",           "+set",
       "+psetex", "+pttl", "+pexpire", "+del",   "+unlink",      "+eval",          "+wait",
       "+hget",   "+hset", "+hdel",    "+hkeys", "+hexists",     "+cluster|slots", "+asking"});
  RedisClientOptions options = TestClientOptions({server.address()}, false);
  options.connection.username = "cache";
  options.connection.password = [] { return std::string("word"); };
  RedisReplica replica(options);
  RedisReplica other(options);
  std::mt19937 rng(std::random_device{}());
  auto chain = RedisTestChain(rng, 2, replica.budget());
  ASSERT_TRUE(replica.tier().Store(chain, SoonEnough()).ok());
  chain[0].error_bound = 0.5f;
  ASSERT_TRUE(replica.tier().Store(chain, SoonEnough()).ok());
  EXPECT_EQ(other.Described(chain), FormsOf(chain));
  EXPECT_TRUE(other.HoldsAll(chain));
  EXPECT_EQ(other.tier().LoadProfiles(SoonEnough())->size(), 1);
  EXPECT_TRUE(other.tier().Remove(KeysOfChain(chain), SoonEnough()).ok());
  EXPECT_EQ(replica.Described(chain), 0);
}

TEST_F(RedisTierTest, AServerThatIsGoneFailsFastAndIsFoundAgain) {
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  server_->Kill();
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(tier().Store(chain_, absl::InfiniteFuture()).code(), StatusCode::kUnavailable);
    EXPECT_EQ(replica_->Load(chain_[0], kExact, absl::InfiniteFuture()).status().code(),
              StatusCode::kUnavailable);
    EXPECT_EQ(replica_->Described(chain_), -1);
  }
  EXPECT_FALSE(tier().Stats().healthy);
  EXPECT_GT(tier().Stats().write_errors, 0);
  EXPECT_GT(tier().Stats().read_errors, 0);
  server_->Start();
  EXPECT_TRUE(Eventually([&] { return tier().Store(chain_, SoonEnough()).ok(); }));
  EXPECT_TRUE(tier().Stats().healthy);
  EXPECT_TRUE(replica_->HoldsAll(chain_));
}

TEST_F(RedisTierTest, AStalledServerHoldsNobodyPastTheDeadline) {
  ASSERT_TRUE(tier().Store(chain_, SoonEnough()).ok());
  server_->Signal(SIGSTOP);
  const auto shortly = [] { return absl::Now() + absl::Milliseconds(100); };
  EXPECT_FALSE(tier().Store(chain_, shortly()).ok());
  EXPECT_FALSE(tier().Describe(KeysOfChain(chain_), shortly()).ok());
  EXPECT_FALSE(replica_->Load(chain_[0], kExact, shortly()).ok());
  EXPECT_FALSE(tier().Remove(KeysOfChain(chain_), shortly()).ok());
  EXPECT_FALSE(tier().LoadProfiles(absl::InfiniteFuture()).ok());
  server_->Signal(SIGCONT);
  EXPECT_TRUE(Eventually([&] { return tier().Store(chain_, SoonEnough()).ok(); }));
  EXPECT_TRUE(replica_->HoldsAll(chain_));
}

}  // namespace
}  // namespace fourierkv
