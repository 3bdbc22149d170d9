#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core_fixtures.h"
#include "kv_service/core/eviction_index.h"
#include "kv_service/core/segment_store.h"

namespace fourierkv {
namespace {

class EvictionTest : public testing::Test {
 protected:
  std::vector<StoredSegment> Chain(int64_t tokens) {
    return MakeChain(context_, RandomTokens(rng_, tokens));
  }
  bool Stored(const StoredSegment& s) { return f_.store.Describe(s.key).ok(); }
  bool HasExact(const StoredSegment& s) {
    return f_.store.Describe(s.key)->forms[SegmentForm::kExact].bytes > 0;
  }

  std::mt19937 rng_{std::random_device{}()};
  std::shared_ptr<const NamespaceContext> context_ = SmallContext();
  StoreFixture f_;
};

TEST_F(EvictionTest, ExactFormsWithCompactAndASuccessorGoFirst) {
  const auto chain = Chain(4 * kS + 3);
  ASSERT_TRUE(f_.Commit(chain, true, true).ok());
  f_.store.Evict(1);
  EXPECT_FALSE(HasExact(chain[1]) && HasExact(chain[2]));
  f_.store.Evict(1);
  EXPECT_FALSE(HasExact(chain[1]) || HasExact(chain[2]));
  EXPECT_EQ(f_.store.Stats().segments, 5);
  EXPECT_TRUE(HasExact(chain[0]));  // the sink stays exact
  EXPECT_TRUE(HasExact(chain[3]));  // only a tail follows: sequences end here
  EXPECT_EQ(f_.metrics->evicted_exact_forms, 2);
  f_.store.Evict(1);
  EXPECT_FALSE(Stored(chain[4]));
  EXPECT_EQ(f_.metrics->evicted_segments, 1);
}

TEST_F(EvictionTest, ChildrenGoBeforeParents) {
  const auto chain = Chain(6 * kS);
  ASSERT_TRUE(f_.Commit(chain, true, false).ok());
  for (int left = 5; left >= 0; --left) {
    f_.store.Evict(1);
    EXPECT_EQ(f_.store.Match(f_.Keys(chain))->segments.size(), left);
  }
  EXPECT_EQ(f_.budget->used(), 0);
}

TEST_F(EvictionTest, OfEquallyUsedSequencesTheLeastRecentlyUsedGoesFirst) {
  const auto a = Chain(2 * kS);
  const auto b = Chain(2 * kS);
  const auto c = Chain(2 * kS);
  for (const auto& chain : {a, b, c}) ASSERT_TRUE(f_.Commit(chain, true, false).ok());
  ASSERT_TRUE(f_.store.Match(f_.Keys(a)).ok());
  f_.store.Evict(1);
  f_.store.Evict(1);
  EXPECT_TRUE(Stored(a[1]));
  EXPECT_FALSE(Stored(b[0]));
  EXPECT_TRUE(Stored(c[1]));
}

TEST_F(EvictionTest, UseOfASegmentIsUseOfEverythingBeforeIt) {
  const auto a = Chain(3 * kS);
  const auto b = Chain(3 * kS);
  ASSERT_TRUE(f_.Commit(a, true, false).ok());
  ASSERT_TRUE(f_.Commit(b, true, false).ok());
  f_.now += absl::Seconds(1);
  f_.store.Get(std::vector{a[2].key});
  EXPECT_EQ(f_.store.Describe(a[0].key)->last_use, f_.now);
  for (int i = 0; i < 3; ++i) f_.store.Evict(1);
  EXPECT_TRUE(Stored(a[2]));
  EXPECT_FALSE(Stored(b[0]));
}

TEST_F(EvictionTest, WhatIsUsedAgainAndAgainOutlivesAScan) {
  const auto popular = Chain(2 * kS);
  ASSERT_TRUE(f_.Commit(popular, true, false).ok());
  const int64_t one = f_.budget->used() / 2;
  StoreFixture tight(4 * one);
  ASSERT_TRUE(tight.Commit(popular, true, false).ok());
  for (int use = 0; use < 5; ++use) {
    tight.now += absl::Seconds(1);
    ASSERT_TRUE(tight.store.Match(tight.Keys(popular)).ok());
  }
  // Sequences that nobody comes back to, each newer than the popular one's last use.
  for (int i = 0; i < 8; ++i) {
    tight.now += absl::Seconds(1);
    ASSERT_TRUE(tight.Commit(Chain(kS), true, false).ok());
  }
  EXPECT_EQ(tight.store.Match(tight.Keys(popular))->segments.size(), 2);
}

TEST_F(EvictionTest, WhatWasPopularOnceIsForgotten) {
  const auto popular = Chain(kS);
  ASSERT_TRUE(f_.Commit(popular, true, false).ok());
  StoreFixture tight(2 * f_.budget->used());
  ASSERT_TRUE(tight.Commit(popular, true, false).ok());
  for (int use = 0; use < 1000; ++use) {
    tight.now += absl::Seconds(1);
    ASSERT_TRUE(tight.store.Match(tight.Keys(popular)).ok());
  }
  for (int i = 0; i < 2 * EvictionIndex::kMaxUses; ++i) {
    ASSERT_TRUE(tight.Commit(Chain(kS), true, false).ok());
  }
  EXPECT_FALSE(tight.store.Describe(popular[0].key).ok());
}

TEST_F(EvictionTest, MatchPutAndFetchOfOneRequestAreOneUse) {
  const auto once = Chain(kS);
  const auto twice = Chain(kS);
  ASSERT_TRUE(f_.Commit(twice, true, false).ok());
  f_.now += absl::Seconds(1);
  ASSERT_TRUE(f_.store.Match(f_.Keys(twice)).ok());
  ASSERT_TRUE(f_.Commit(once, true, false).ok());
  for (int i = 0; i < 5; ++i) f_.store.Get(f_.Keys(once));
  f_.store.Evict(1);
  EXPECT_TRUE(Stored(twice[0]));
  EXPECT_FALSE(Stored(once[0]));
}

TEST_F(EvictionTest, ABudgetUnderPressureEvictsByItself) {
  const auto first = Chain(kS);
  ASSERT_TRUE(f_.Commit(first, true, false).ok());
  const int64_t one = f_.budget->used();
  StoreFixture tight(4 * one + one / 2);
  std::vector<StoredSegment> chains;
  for (int i = 0; i < 20; ++i) {
    const auto chain = Chain(kS);
    ASSERT_TRUE(tight.Commit(chain, true, false).ok());
    chains.push_back(chain[0]);
  }
  EXPECT_EQ(tight.store.Stats().segments, 4);
  for (int i = 16; i < 20; ++i) EXPECT_TRUE(tight.store.Describe(chains[i].key).ok());
  EXPECT_LE(tight.budget->peak(), tight.budget->limit());
}

TEST_F(EvictionTest, WithEverythingHeldTheBudgetIsExhausted) {
  const auto first = Chain(kS);
  ASSERT_TRUE(f_.Commit(first, true, false).ok());
  StoreFixture tight(f_.budget->used() + 100);
  ASSERT_TRUE(tight.Commit(first, true, false).ok());
  const auto lease = tight.store.AcquireLease(tight.Keys(first), absl::Minutes(1));
  ASSERT_TRUE(lease.ok());
  EXPECT_EQ(tight.budget->TryReserve(1000).status().code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(tight.store.Release(lease->id).ok());
  EXPECT_TRUE(tight.budget->TryReserve(1000).ok());
  EXPECT_EQ(tight.store.Stats().segments, 0);
}

TEST_F(EvictionTest, AnEmptyStoreHasNothingToGive) { EXPECT_EQ(f_.store.Evict(1), 0); }

}  // namespace
}  // namespace fourierkv
