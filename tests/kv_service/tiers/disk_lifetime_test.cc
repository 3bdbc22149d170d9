// How long the disk tier keeps what it was given, how much of it for whom, and what it tells of it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "disk_fixture.h"
#include "kv_service/core/event_feed.h"
#include "kv_service/core/event_log.h"
#include "kv_service/core/tenant_salt.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

class DiskLifetimeTest : public testing::Test {
 protected:
  DiskLifetimeTest() {
    f_.options().clock = [this] { return now_; };
  }
  void SetUp() override { ASSERT_TRUE(f_.Reopen().ok()); }

  absl::Status Store(std::vector<StoredSegment> chain, absl::Duration ttl) {
    for (StoredSegment& segment : chain) segment.expires = now_ + ttl;
    return f_.tier().Store(chain, absl::InfiniteFuture());
  }
  void Sweep() {
    while (f_.tier().Expire()) continue;
  }
  size_t Held(std::span<const StoredSegment> chain) {
    size_t held = 0;
    while (held < chain.size() && f_.Holds(chain[held])) ++held;
    return held;
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 rng_{seed_};
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  DiskFixture f_;
};

using DiskExpiryTest = DiskLifetimeTest;

TEST_F(DiskExpiryTest, WhatIsOverTimeIsMissingAndGoes) {
  const auto chain = f_.Chain(rng_, 4, 7);
  ASSERT_TRUE(Store(chain, absl::Seconds(10)).ok());
  now_ += absl::Seconds(10) - absl::Milliseconds(1);
  EXPECT_EQ(Held(chain), 5);
  Sweep();
  EXPECT_EQ(f_.tier().Stats().segments, 5);
  now_ += absl::Milliseconds(1);
  for (const StoredSegment& segment : chain) {
    EXPECT_FALSE(f_.Holds(segment)) << "it is missing before it is removed";
    EXPECT_EQ(f_.LoadForm(segment, SegmentForm::kExact).status().code(), StatusCode::kNotFound);
  }
  Sweep();
  EXPECT_EQ(f_.tier().Stats().segments, 0);
  EXPECT_EQ(f_.tier().Stats().bytes, 0);
  EXPECT_EQ(f_.tier().Stats().expired_segments, 5);
}

TEST_F(DiskExpiryTest, HoldsAcrossARestart) {
  const auto chain = f_.Chain(rng_, 3);
  const auto for_ever = f_.Chain(rng_, 2);
  ASSERT_TRUE(Store(chain, absl::Seconds(10)).ok());
  ASSERT_TRUE(Store(for_ever, absl::InfiniteDuration()).ok());
  // The second is stored for longer: so is what is before it.
  ASSERT_TRUE(Store({chain[1]}, absl::Seconds(20)).ok());
  ASSERT_TRUE(f_.Reopen().ok());
  EXPECT_EQ(Held(chain), 3);
  now_ += absl::Seconds(10);
  EXPECT_EQ(Held(chain), 2);
  ASSERT_TRUE(f_.Reopen().ok());
  EXPECT_EQ(Held(chain), 2);
  now_ += absl::Seconds(10);
  ASSERT_TRUE(f_.Reopen().ok());
  EXPECT_EQ(Held(chain), 0) << "its time was over while it was open or closed";
  EXPECT_TRUE(f_.HoldsAll(for_ever));
  Sweep();
  EXPECT_EQ(f_.tier().Stats().segments, 2);
}

TEST_F(DiskExpiryTest, AParentLivesAsLongAsItsChildren) {
  const auto chain = f_.Chain(rng_, 3);
  ASSERT_TRUE(Store({chain[0], chain[1]}, absl::Seconds(10)).ok());
  ASSERT_TRUE(Store({chain[2]}, absl::Seconds(60)).ok());
  now_ += absl::Seconds(59);
  Sweep();
  EXPECT_TRUE(f_.HoldsAll(chain));
  ASSERT_TRUE(f_.Reopen().ok());
  EXPECT_TRUE(f_.HoldsAll(chain));
  now_ += absl::Seconds(1);
  EXPECT_EQ(Held(chain), 0);
}

TEST_F(DiskExpiryTest, StoredAgainForEverItStays) {
  const auto chain = f_.Chain(rng_, 2);
  ASSERT_TRUE(Store(chain, absl::Seconds(10)).ok());
  ASSERT_TRUE(Store(chain, absl::InfiniteDuration()).ok());
  ASSERT_TRUE(Store(chain, absl::Seconds(1)).ok()) << "the longer time holds";
  now_ += absl::Hours(10'000);
  Sweep();
  EXPECT_TRUE(f_.HoldsAll(chain));
}

TEST_F(DiskExpiryTest, WhatIsProtectedOutlastsItsTime) {
  const auto chain = f_.Chain(rng_, 3);
  ASSERT_TRUE(Store(chain, absl::Seconds(10)).ok());
  f_.tier().Touch(std::span(&chain[1].key, 1), now_ + absl::Seconds(60));
  now_ += absl::Seconds(30);
  Sweep();
  EXPECT_EQ(Held(chain), 2) << "with what is before it, not with what continues it";
  now_ += absl::Seconds(30);
  Sweep();
  EXPECT_EQ(f_.tier().Stats().segments, 0);
}

class DiskQuotaTest : public DiskLifetimeTest {
 protected:
  std::vector<StoredSegment> ChainOf(const std::string& salt, int segments) {
    auto chain = MakeChain(SmallContext(true, salt), RandomTokens(rng_, segments * kS));
    for (StoredSegment& segment : chain) {
      segment.forms[SegmentForm::kExact] =
          RandomForm(rng_, segment, SegmentForm::kExact, f_.budget());
    }
    return chain;
  }
};

TEST_F(DiskQuotaTest, WhoHasMoreThanHisShareMakesRoomFromHisOwn) {
  const auto others = ChainOf("", 4);
  ASSERT_TRUE(Store(others, absl::InfiniteDuration()).ok());
  const int64_t bytes = f_.tier().Stats().bytes;
  const std::string salt = *MakeTenantSalt("small", "");
  int64_t limit = bytes + 4096;  // four segments of this tenant, whose names are longer
  f_.options().tenant_limit = [&](absl::string_view tenant) {
    return tenant == "small" ? limit : 0;
  };
  ASSERT_TRUE(f_.Reopen().ok());
  std::vector<std::vector<StoredSegment>> own;
  for (int i = 0; i < 6; ++i) {
    own.push_back(ChainOf(salt, 1));
    ASSERT_TRUE(Store(own.back(), absl::InfiniteDuration()).ok());
  }
  const auto held = [&] {
    std::vector<bool> result;
    for (const auto& chain : own) result.push_back(f_.Holds(chain[0]));
    return result;
  };
  EXPECT_THAT(held(), testing::ElementsAre(false, false, true, true, true, true));
  EXPECT_TRUE(f_.HoldsAll(others)) << "which are the least recently used";
  // As much as before it was closed.
  ASSERT_TRUE(f_.Reopen().ok());
  own.push_back(ChainOf(salt, 1));
  ASSERT_TRUE(Store(own.back(), absl::InfiniteDuration()).ok());
  EXPECT_THAT(held(), testing::ElementsAre(false, false, false, true, true, true, true));
  EXPECT_TRUE(f_.HoldsAll(others));
  // What can never fit is refused by name, and nothing goes for it.
  limit = 100;
  const absl::Status refused = Store(ChainOf(salt, 1), absl::InfiniteDuration());
  EXPECT_EQ(refused.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("disk_bytes"));
  EXPECT_EQ(f_.tier().Stats().segments, 8);
}

TEST_F(DiskQuotaTest, AShareFullOfProtectedSegmentsRefuses) {
  const std::string salt = *MakeTenantSalt("small", "");
  const auto first = ChainOf(salt, 2);
  ASSERT_TRUE(Store(first, absl::InfiniteDuration()).ok());
  const int64_t limit = f_.tier().Stats().bytes + 100;
  f_.options().tenant_limit = [&](absl::string_view) { return limit; };
  ASSERT_TRUE(f_.Reopen().ok());
  f_.tier().Touch(std::span(&first[1].key, 1), now_ + absl::Minutes(1));
  EXPECT_EQ(Store(ChainOf(salt, 1), absl::InfiniteDuration()).code(),
            StatusCode::kResourceExhausted);
  EXPECT_TRUE(f_.HoldsAll(first));
  now_ += absl::Minutes(1);
  EXPECT_TRUE(Store(ChainOf(salt, 1), absl::InfiniteDuration()).ok());
}

// What followers of events know of the disk: bytes of all forms, by key.
using Mirror = std::map<BlockKey, int64_t>;

class DiskEventsTest : public DiskLifetimeTest {
 protected:
  void SetUp() override {
    DiskLifetimeTest::SetUp();
    f_.tier().Observe(&log_);
  }
  // Applies what came since.
  void Follow(EventFeed& feed, Mirror& mirror) {
    EventFeed::Message message;
    do {
      ASSERT_TRUE(feed.Next(absl::InfinitePast(), message));
      if (message.snapshot_begins) mirror.clear();
      for (const StoreEvent& event : message.events) {
        ASSERT_EQ(event.tier, Durability::kDisk);
        if (event.kind == StoreEventKind::kStored) {
          mirror[event.key] = event.bytes_held();
        } else {
          mirror.erase(event.key);
        }
      }
    } while (message.snapshot || !message.events.empty());
  }
  Mirror Truth() {
    Mirror truth;
    std::vector<TierSegment> rows;
    for (size_t at = 0; f_.tier().Walk(at, 3, rows);) continue;
    for (const TierSegment& row : rows) {
      for (const SegmentForm form : kHeldForms) truth[row.segment.key] += row.forms[form].bytes;
    }
    std::erase_if(truth, [](const auto& row) { return row.second == 0; });
    return truth;
  }
  EventFeed Feed(uint64_t from = 0) {
    return {&log_, &memory_.store, log_.epoch(), from, nullptr, {&f_.tier()}};
  }

  StoreFixture memory_;
  EventLog log_{1024};
};

TEST_F(DiskEventsTest, AMirrorIsWhatTheTierHolds) {
  const auto first = f_.Chain(rng_, 5, 3);
  ASSERT_TRUE(Store(first, absl::Seconds(10)).ok());
  EventFeed early = Feed();
  EventFeed late = Feed(log_.latest() + 1);  // no such number: a snapshot
  Mirror from_start, from_snapshot;
  Follow(early, from_start);
  Follow(late, from_snapshot);
  EXPECT_EQ(from_start.size(), 6);
  EXPECT_EQ(from_start, Truth());
  EXPECT_EQ(from_snapshot, Truth());
  const auto second = f_.Chain(rng_, 2);
  ASSERT_TRUE(Store(second, absl::InfiniteDuration()).ok());
  ASSERT_TRUE(f_.tier().Remove(std::span(&first[3].key, 1), absl::InfiniteFuture()).ok());
  Follow(early, from_start);
  EXPECT_EQ(from_start.size(), 5);
  EXPECT_EQ(from_start, Truth());
  now_ += absl::Seconds(10);
  Sweep();
  Follow(early, from_start);
  Follow(late, from_snapshot);
  EXPECT_EQ(from_start.size(), 2);
  EXPECT_EQ(from_start, Truth());
  EXPECT_EQ(from_snapshot, Truth());
}

TEST_F(DiskEventsTest, EvictionIsTold) {
  DiskFixture small(int64_t{1} << 20);
  ASSERT_TRUE(small.Reopen().ok());
  small.tier().Observe(&log_);
  for (int i = 0; i < 12; ++i) {
    ASSERT_TRUE(small.tier().Store(small.Chain(rng_, 10), absl::InfiniteFuture()).ok());
  }
  const uint64_t evicted = small.tier().Stats().evicted_segments;
  ASSERT_GT(evicted, 0);
  std::vector<StoreEvent> events;
  log_.Read(0, 1024, absl::InfinitePast(), events);
  EXPECT_EQ(std::count_if(events.begin(), events.end(),
                          [](const StoreEvent& event) {
                            return event.kind == StoreEventKind::kRemoved &&
                                   event.reason == RemovalReason::kEvicted;
                          }),
            evicted);
}

}  // namespace
}  // namespace fourierkv
