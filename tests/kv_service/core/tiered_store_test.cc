// Memory and a tier beneath it as one store.

#include "kv_service/core/tiered_store.h"

#include <gtest/gtest.h>

#include "tiered_fixture.h"

namespace fourierkv {
namespace {

constexpr SegmentForm kCompactFirst[] = {SegmentForm::kCompact, SegmentForm::kExact};

TEST_F(TieredStoreTest, TheAnswerSaysWhatWasReached) {
  auto stats = Put(tokens_, Durability::kDisk);
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(stats->durability, Durability::kDisk);
  for (const BlockKey& key : keys_) EXPECT_TRUE(tier_->Holds(key));
  // Nothing offers more.
  stats = Put(RandomTokens(rng_, kS), Durability::kShared);
  EXPECT_EQ(stats->durability, Durability::kDisk);
  stats = Put(RandomTokens(rng_, kS), Durability::kMemory);
  EXPECT_EQ(stats->durability, Durability::kMemory);
}

TEST_F(TieredStoreTest, ATierThatFailsOrIsLateCostsDurabilityOnly) {
  tier_->failing = true;
  auto stats = Put(tokens_, Durability::kDisk);
  ASSERT_TRUE(stats.ok());
  EXPECT_EQ(stats->durability, Durability::kMemory);
  EXPECT_EQ(Open(keys_, {SegmentForm::kExact})[0].missing, MissingReason::kNone);
  tier_->failing = false;
  tier_->stuck = true;
  stats = Put(RandomTokens(rng_, kS), Durability::kDisk, absl::Now() + absl::Milliseconds(30));
  ASSERT_TRUE(stats.ok());
  EXPECT_EQ(stats->durability, Durability::kMemory);
}

TEST_F(TieredStoreTest, WhatDidNotWaitIsWrittenBehind) {
  ASSERT_TRUE(Put(tokens_, Durability::kMemory).ok());
  ASSERT_TRUE(tiers_.Drain(absl::Now() + absl::Minutes(1)));
  for (const BlockKey& key : keys_) EXPECT_TRUE(tier_->Holds(key));
  EXPECT_EQ(tiers_.write_back().written_segments, 5);
}

TEST_F(TieredStoreTest, DurableMeansEverythingBeforeItToo) {
  tier_->failing = true;
  const std::vector<uint32_t> first(tokens_.begin(), tokens_.begin() + 2 * kS);
  ASSERT_TRUE(Put(first, Durability::kMemory).ok());
  ASSERT_TRUE(tiers_.Drain(absl::Now() + absl::Minutes(1)));
  EXPECT_FALSE(tier_->Holds(keys_[0]));
  tier_->failing = false;
  PutPlan plan;
  plan.context = context_;
  plan.parent = keys_[1];
  plan.first_segment_index = 2;
  plan.token_ids.assign(tokens_.begin() + 2 * kS, tokens_.begin() + 3 * kS);
  plan.durability = Durability::kDisk;
  auto session = puts_.Begin(plan);
  ASSERT_TRUE(session.ok());
  ASSERT_TRUE(
      SendAll(**session, [&](int64_t, int, Part) { return RandomPart(rng_, kSmall, kS); }).ok());
  EXPECT_EQ((*session)->Commit()->durability, Durability::kDisk);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(tier_->Holds(keys_[i]));
}

TEST_F(TieredStoreTest, EvictedSegmentsMatchAndComeBack) {
  ASSERT_TRUE(Put(tokens_, Durability::kDisk).ok());
  const auto before = Open(keys_, {SegmentForm::kCompact, SegmentForm::kExact});
  EvictAll();
  ASSERT_EQ(store_.store.Stats().segments, 0);
  const auto tail = ChainKeys(context_->ns, tokens_).tail;
  auto match = tiers_.Match(keys_, tail, absl::ZeroDuration(), absl::InfiniteFuture());
  ASSERT_TRUE(match.ok());
  ASSERT_EQ(match->segments.size(), keys_.size());
  EXPECT_TRUE(match->tail.has_value());
  for (const SegmentSummary& segment : match->segments) EXPECT_EQ(segment.tier, 1);
  EXPECT_EQ(store_.store.Stats().segments, 0);  // a look costs no memory

  const auto open = Open(keys_, {kCompactFirst[0], kCompactFirst[1]});
  for (size_t i = 0; i < open.size(); ++i) {
    ASSERT_EQ(open[i].missing, MissingReason::kNone) << i;
    EXPECT_EQ(open[i].form, before[i].form);
    EXPECT_EQ(open[i].source, before[i].source);
  }
  // They are in memory again, so that the next read asks nobody.
  const int loads = tier_->loads;
  Open(keys_, {kCompactFirst[0], kCompactFirst[1]});
  EXPECT_EQ(tier_->loads, loads);
  match = tiers_.Match(keys_, tail, absl::ZeroDuration(), absl::InfiniteFuture());
  EXPECT_EQ(match->segments.front().tier, 0);
}

TEST_F(TieredStoreTest, MatchGoesOnFromMemoryIntoTheTier) {
  ASSERT_TRUE(Put(tokens_, Durability::kDisk).ok());
  EvictAll();
  Open(std::span(keys_).first(2), {SegmentForm::kExact});  // these two are promoted
  const auto match =
      tiers_.Match(keys_, std::nullopt, absl::ZeroDuration(), absl::InfiniteFuture());
  ASSERT_EQ(match->segments.size(), keys_.size());
  EXPECT_EQ(match->segments[1].tier, 0);
  EXPECT_EQ(match->segments[2].tier, 1);
}

TEST_F(TieredStoreTest, LeasesHoldWhatOnlyTheTierHasFromDeletion) {
  ASSERT_TRUE(Put(tokens_, Durability::kDisk).ok());
  EvictAll();
  const auto match = tiers_.Match(keys_, std::nullopt, absl::Minutes(1), absl::InfiniteFuture());
  ASSERT_TRUE(match.ok()) << match.status();
  ASSERT_TRUE(match->lease.has_value());
  EXPECT_EQ(tiers_.Delete(keys_, absl::InfiniteFuture()).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(tier_->Holds(keys_[0]));
  ASSERT_TRUE(store_.store.Release(match->lease->id).ok());
  ASSERT_TRUE(tiers_.Delete(keys_, absl::InfiniteFuture()).ok());
  for (const BlockKey& key : keys_) EXPECT_FALSE(tier_->Holds(key));
}

TEST_F(TieredStoreTest, DeletedSegmentsAreNotWrittenBehindAfterwards) {
  tier_->stuck = true;
  ASSERT_TRUE(Put(RandomTokens(rng_, kS), Durability::kMemory).ok());  // keeps the writer busy
  std::thread release([&] {
    absl::SleepFor(absl::Milliseconds(30));
    tier_->stuck = false;
  });
  ASSERT_TRUE(Put(tokens_, Durability::kMemory, absl::Now() + absl::Milliseconds(20)).ok());
  ASSERT_TRUE(tiers_.Delete(std::span(keys_).first(1), absl::InfiniteFuture()).ok());
  release.join();
  ASSERT_TRUE(tiers_.Drain(absl::Now() + absl::Minutes(1)));
  for (const BlockKey& key : keys_) EXPECT_FALSE(tier_->Holds(key));
}

TEST_F(TieredStoreTest, WhatDoesNotComeInTimeIsMissingAndNamed) {
  ASSERT_TRUE(Put(tokens_, Durability::kDisk).ok());
  EvictAll();
  Open(std::span(keys_).first(1), {SegmentForm::kExact});
  tier_->stuck_loading = true;
  const auto open = Open(keys_, {SegmentForm::kExact}, absl::Now() + absl::Milliseconds(30));
  EXPECT_EQ(open[0].missing, MissingReason::kNone);
  for (size_t i = 1; i < open.size(); ++i) {
    EXPECT_EQ(open[i].missing, MissingReason::kNotFetched);
  }
  tier_->stuck_loading = false;
  const auto again = Open(keys_, {SegmentForm::kExact});
  for (const OpenSegment& segment : again) EXPECT_EQ(segment.missing, MissingReason::kNone);
}

TEST_F(TieredStoreTest, LooksIntoTiersLeaveTimeToAnswerWithoutThem) {
  ASSERT_TRUE(Put(tokens_, Durability::kDisk).ok());
  EvictAll();
  for (const absl::Duration left : {absl::Seconds(1), absl::Hours(1), absl::InfiniteDuration()}) {
    const absl::Time begun = absl::Now();
    ASSERT_TRUE(tiers_.Match(keys_, std::nullopt, absl::ZeroDuration(), begun + left).ok());
    const absl::Duration longest = std::min(left / 2, TieredOptions().longest_look);
    EXPECT_LE(tier_->described_until(), absl::Now() + longest);
    EXPECT_LT(tier_->described_until(), begun + left);
  }
}

TEST_F(TieredStoreTest, ACallThatEndsIsNotHeldUpByATierThatIsStuck) {
  ASSERT_TRUE(Put(tokens_, Durability::kDisk).ok());
  EvictAll();
  tier_->stuck_loading = true;
  const auto end = std::make_shared<CallEnd>();
  std::thread caller([&] {
    while (tier_->loads == 0) absl::SleepFor(absl::Milliseconds(1));
    end->Come(absl::Now());
  });
  // Would last for ever.
  const SegmentWant want{keys_[0], {SegmentForm::kExact}};
  const auto fetched = tiers_.Fetch(std::span(&want, 1), {absl::InfiniteFuture(), end});
  EXPECT_TRUE(fetched[0].late);
  caller.join();
  // What the tier did after that is known when it is done.
  const auto overruns = [&] {
    uint64_t count = 0;
    for (const uint64_t each : tiers_.tiers()[0]->metrics().overrun.counts()) count += each;
    return count;
  };
  EXPECT_EQ(overruns(), 0);
  tier_->stuck_loading = false;
  for (const absl::Time limit = absl::Now() + absl::Seconds(20);
       overruns() == 0 && absl::Now() < limit;) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(overruns(), 1);
}

TEST_F(TieredStoreTest, DamageInTheTierIsAMiss) {
  ASSERT_TRUE(Put(tokens_, Durability::kDisk).ok());
  EvictAll();
  tier_->damaged = true;
  const auto open = Open(keys_, {SegmentForm::kCompact});
  for (const OpenSegment& segment : open) EXPECT_NE(segment.missing, MissingReason::kNone);
}

TEST_F(TieredStoreTest, WhatTheTierHoldsIsNotSentAgainAndCanBeContinued) {
  ASSERT_TRUE(Put(tokens_, Durability::kDisk).ok());
  EvictAll();
  const auto stats = Put(tokens_, Durability::kDisk);
  ASSERT_TRUE(stats.ok()) << stats.status();
  EXPECT_EQ(needed_, 0);
  EXPECT_EQ(stats->durability, Durability::kDisk);
  EvictAll();
  PutPlan plan;
  plan.context = context_;
  plan.parent = keys_[3];
  plan.first_segment_index = 4;
  plan.token_ids = RandomTokens(rng_, kS);
  plan.durability = Durability::kDisk;
  auto session = puts_.Begin(plan);
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE(
      SendAll(**session, [&](int64_t, int, Part) { return RandomPart(rng_, kSmall, kS); }).ok());
  const auto committed = (*session)->Commit();
  ASSERT_TRUE(committed.ok()) << committed.status();
  EXPECT_EQ(committed->durability, Durability::kDisk);
}

TEST_F(TieredStoreTest, WithoutTiersMemoryAnswersAlone) {
  TieredStore none(&store_.store, {});
  ASSERT_TRUE(Put(tokens_, Durability::kDisk).ok());
  EvictAll();
  EXPECT_TRUE(none.empty());
  EXPECT_EQ(none.Match(keys_, std::nullopt, absl::ZeroDuration(), absl::InfiniteFuture())
                ->segments.size(),
            0);
  EXPECT_EQ(none.Keep(keys_, Durability::kShared, absl::InfiniteFuture()), Durability::kMemory);
}

}  // namespace
}  // namespace fourierkv
