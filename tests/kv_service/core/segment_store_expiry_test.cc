#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "absl/time/clock.h"
#include "core_fixtures.h"
#include "kv_service/core/removal_history.h"
#include "kv_service/core/segment_store.h"
#include "kv_service/core/store_sweeper.h"

namespace fourierkv {
namespace {

using absl::StatusCode;

class ExpiryTest : public testing::Test {
 protected:
  // Commits the first `count` segments of the chain, to live for `ttl`.
  void Commit(size_t count, absl::Duration ttl) {
    std::vector<StoredSegment> batch(chain_.begin(), chain_.begin() + count);
    for (StoredSegment& segment : batch) {
      segment.forms[SegmentForm::kExact] = MakeForm(segment, SegmentForm::kExact, *budget_);
    }
    const auto result = store_.Commit(std::move(batch), 0, now_ + ttl);
    ASSERT_TRUE(result.ok()) << result.status();
  }
  size_t Matched() { return store_.Match(keys_)->segments.size(); }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 rng_{seed_};
  std::vector<StoredSegment> chain_ = MakeChain(SmallContext(), RandomTokens(rng_, 4 * kS));
  std::vector<BlockKey> keys_ = [this] {
    std::vector<BlockKey> keys;
    for (const StoredSegment& segment : chain_) keys.push_back(segment.key);
    return keys;
  }();
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create("memory", int64_t{64} << 20);
  RemovalHistory removals_;
  SegmentStore store_{budget_, std::make_shared<StoreMetrics>(), [this] { return now_; },
                      &removals_};
};

TEST_F(ExpiryTest, WhatIsOverTimeIsMissingAndGoes) {
  Commit(4, absl::Seconds(10));
  now_ += absl::Seconds(10) - absl::Nanoseconds(1);
  EXPECT_EQ(Matched(), 4);
  now_ += absl::Nanoseconds(1);
  EXPECT_EQ(store_.Describe(keys_[3]).status().code(), StatusCode::kNotFound);
  EXPECT_FALSE(store_.Peek(keys_[0]).has_value());
  EXPECT_FALSE(store_.Get(keys_)[2].has_value());
  EXPECT_EQ(store_.AcquireLease(keys_, absl::Seconds(1)).status().code(), StatusCode::kNotFound);
  EXPECT_EQ(Matched(), 0);
  EXPECT_FALSE(store_.Expire());  // a few are all gone at once
  EXPECT_EQ(store_.Stats().segments, 0);
  EXPECT_EQ(budget_->used(), 0);
  ASSERT_TRUE(removals_.Find(keys_[1]).has_value());
  EXPECT_EQ(removals_.Find(keys_[1])->reason, RemovalReason::kDeleted);
}

TEST_F(ExpiryTest, TheLongerTimeHolds) {
  Commit(2, absl::Seconds(10));
  Commit(1, absl::Seconds(30));
  Commit(2, absl::Seconds(5));
  now_ += absl::Seconds(10);
  EXPECT_EQ(Matched(), 1);
  now_ += absl::Seconds(20);
  EXPECT_EQ(Matched(), 0);
  Commit(2, absl::Seconds(10));  // again, whatever is still there of it
  EXPECT_EQ(Matched(), 2);
  Commit(2, absl::InfiniteDuration());
  now_ += absl::Hours(1'000'000);
  EXPECT_EQ(Matched(), 2);
}

TEST_F(ExpiryTest, AParentLivesAsLongAsItsChildren) {
  Commit(2, absl::Seconds(10));
  StoredSegment child = chain_[2];
  child.forms[SegmentForm::kExact] = MakeForm(child, SegmentForm::kExact, *budget_);
  ASSERT_TRUE(store_.Commit({child}, 0, now_ + absl::Seconds(60)).ok());
  now_ += absl::Seconds(59);
  EXPECT_EQ(Matched(), 3);
  now_ += absl::Seconds(1);
  EXPECT_EQ(Matched(), 0);
}

TEST_F(ExpiryTest, LeasesAndPinsOutlastIt) {
  Commit(4, absl::Seconds(10));
  const auto lease = store_.AcquireLease(keys_, absl::Seconds(60));
  ASSERT_TRUE(lease.ok());
  now_ += absl::Seconds(30);
  EXPECT_EQ(Matched(), 4);
  {
    const SegmentPin pin = store_.Pin(std::span(keys_).first(2));
    now_ += absl::Seconds(30);
    EXPECT_EQ(Matched(), 2);
  }
  EXPECT_EQ(Matched(), 0);
  const SegmentPin late = store_.Pin(keys_);  // of what is missing: of nothing
  EXPECT_EQ(Matched(), 0);
}

TEST_F(ExpiryTest, WhatIsBeforeSomethingPinnedStaysWithIt) {
  Commit(4, absl::Seconds(10));
  const BlockKey other = [&] {  // a sibling of segment 2, of the same age
    std::vector<StoredSegment> fork = MakeChain(chain_[0].context, RandomTokens(rng_, 3 * kS));
    fork[2].parent = chain_[1].key;
    fork[2].forms[SegmentForm::kExact] = MakeForm(fork[2], SegmentForm::kExact, *budget_);
    EXPECT_TRUE(store_.Commit({fork[2]}, 0, now_ + absl::Seconds(10)).ok());
    return fork[2].key;
  }();
  const SegmentPin pin = store_.Pin(std::span(keys_).subspan(2, 1));
  {
    const SegmentPin twice = store_.Pin(std::span(keys_).subspan(1, 2));
    now_ += absl::Seconds(10);
    EXPECT_EQ(Matched(), 3);
  }
  EXPECT_EQ(Matched(), 3) << "the second pin is gone, the first one is not";
  EXPECT_FALSE(store_.Peek(keys_[3]).has_value());
  EXPECT_FALSE(store_.Peek(other).has_value());
  EXPECT_EQ(store_.Stats().segments, 3);
}

TEST_F(ExpiryTest, WhatIsNoLongerPinnedGoes) {
  Commit(4, absl::Seconds(10));
  SegmentPin deep = store_.Pin(std::span(keys_).last(1));
  SegmentPin all = store_.Pin(keys_);
  now_ += absl::Seconds(10);
  all.Release();
  EXPECT_EQ(Matched(), 4);
  deep.Release();
  EXPECT_EQ(Matched(), 0);
  EXPECT_EQ(store_.Stats().segments, 0);
  EXPECT_EQ(budget_->used(), 0);
}

TEST_F(ExpiryTest, WhatHasATimeIsChargedForIt) {
  Commit(4, absl::InfiniteDuration());
  const int64_t for_ever = budget_->used();
  ASSERT_TRUE(store_.Delete(keys_, true).ok());
  Commit(4, absl::Seconds(10));
  EXPECT_EQ(budget_->used(), for_ever + 4 * kMortalOverheadBytes);
  Commit(2, absl::InfiniteDuration());
  EXPECT_EQ(budget_->used(), for_ever + 2 * kMortalOverheadBytes);
}

TEST_F(ExpiryTest, ManyGoInBoundedSteps) {
  std::vector<StoredSegment> all;
  for (int i = 0; i < 1500; ++i) {
    all.push_back(MakeChain(chain_[0].context, RandomTokens(rng_, kS))[0]);
  }
  for (StoredSegment& segment : all) {
    segment.forms[SegmentForm::kExact] = MakeForm(segment, SegmentForm::kExact, *budget_);
  }
  ASSERT_TRUE(store_.Commit(std::move(all), 0, now_ + absl::Seconds(1)).ok());
  now_ += absl::Seconds(1);
  int steps = 1;
  for (int64_t before = store_.Stats().segments; store_.Expire(); ++steps) {
    const int64_t after = store_.Stats().segments;
    EXPECT_GT(after, 0);
    EXPECT_LT(after, before);
    before = after;
  }
  EXPECT_GT(steps, 1);
  EXPECT_EQ(store_.Stats().segments, 0);
}

TEST(StoreSweeperTest, StepsUntilNothingIsLeftButNotForEver) {
  std::atomic<int> left{10};
  std::atomic<int> endless{0};
  {
    const StoreSweeper finite([&] { return left > 0 && --left > 0; }, absl::Milliseconds(1));
    const StoreSweeper busy([&] { return ++endless > 0; }, absl::Hours(1));
    const absl::Time limit = absl::Now() + absl::Minutes(1);
    while (left > 0 && absl::Now() < limit) absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(left, 0);
  EXPECT_EQ(endless, 0) << "its period is an hour";
  {
    const StoreSweeper busy([&] { return ++endless > 0; }, absl::Milliseconds(100));
    while (endless == 0) absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(endless % StoreSweeper::kSteps, 0) << "a tick is bounded, and whole";
}

TEST_F(ExpiryTest, ExpiredBytesMakeRoom) {
  Commit(4, absl::Seconds(10));
  const int64_t used = budget_->used();
  now_ += absl::Seconds(10);
  EXPECT_GT(store_.Evict(1), 0);
  while (store_.Evict(used) > 0) continue;
  EXPECT_EQ(budget_->used(), 0);
}

}  // namespace
}  // namespace fourierkv
