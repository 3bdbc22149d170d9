// Memory and a tier beneath it as one store. The tier is one of few lines that can be slow or fail.

#include "kv_service/core/tiered_store.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "core_fixtures.h"
#include "kv_service/core/segment_reader.h"

namespace fourierkv {
namespace {

class FakeTier : public SegmentTier {
 public:
  absl::string_view name() const override { return "fake"; }
  Durability durability() const override { return Durability::kDisk; }
  int load_batch() const override { return 1; }

  absl::Status Store(std::span<const StoredSegment> segments, const Patience&) override {
    if (absl::Status s = Behave(); !s.ok()) return s;
    std::lock_guard<std::mutex> lock(mutex_);
    for (const StoredSegment& segment : segments) {
      if (segment.parent != segment.context->root && !held_.contains(segment.parent)) {
        return absl::FailedPreconditionError("no parent");
      }
      if (!segment.HoldsAnything() && !held_.contains(segment.key)) {
        return absl::FailedPreconditionError("not held");
      }
      StoredSegment& held = held_.try_emplace(segment.key, segment).first->second;
      for (const SegmentForm form : kHeldForms) {
        if (held.forms[form] == nullptr) held.forms[form] = segment.forms[form];
      }
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<std::optional<TierSegment>>> Describe(std::span<const BlockKey> keys,
                                                                   const Patience&) override {
    if (absl::Status s = Behave(); !s.ok()) return s;
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::optional<TierSegment>> result(keys.size());
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto it = held_.find(keys[i]);
      if (it == held_.end()) continue;
      result[i] = TierSegment{.segment = it->second};
      result[i]->segment.forms = {};
      for (const SegmentForm form : kHeldForms) {
        if (const FormPtr& held = it->second.forms[form]; held != nullptr) {
          result[i]->forms[form] = {held->bytes(), held->mean_relative_error(),
                                    held->max_relative_error()};
        }
      }
    }
    return result;
  }
  std::vector<absl::StatusOr<FormPtr>> Load(std::span<const TierWant> wants, MemoryBudget&,
                                            const Patience&) override {
    ++loads;
    while (stuck_loading) absl::SleepFor(absl::Milliseconds(1));
    std::vector<absl::StatusOr<FormPtr>> result;
    for (const TierWant& want : wants) {
      if (absl::Status s = Behave(); !s.ok()) {
        result.emplace_back(s);
        continue;
      }
      std::lock_guard<std::mutex> lock(mutex_);
      const auto it = held_.find(want.segment->key);
      if (it == held_.end() || it->second.forms[want.form] == nullptr) {
        result.emplace_back(absl::NotFoundError("not held"));
      } else if (damaged) {
        it->second.forms[want.form] = nullptr;
        result.emplace_back(absl::DataLossError("damaged"));
      } else {
        result.emplace_back(it->second.forms[want.form]);
      }
    }
    return result;
  }
  absl::Status Remove(std::span<const BlockKey> keys, const Patience&) override {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const BlockKey& key : keys) held_.erase(key);
    return absl::OkStatus();
  }
  void Touch(std::span<const BlockKey>, absl::Time) override {}
  absl::Status StoreProfile(const ProfileLayout&, const Patience&) override { return Behave(); }
  absl::StatusOr<std::vector<std::string>> LoadProfiles(const Patience&) override {
    return std::vector<std::string>();
  }
  TierStats Stats() const override { return {}; }

  bool Holds(const BlockKey& key) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return held_.contains(key);
  }

  std::atomic<bool> failing{false};
  std::atomic<bool> damaged{false};
  std::atomic<bool> stuck{false};  // until it is not
  std::atomic<bool> stuck_loading{false};
  std::atomic<int> loads{0};

 private:
  absl::Status Behave() {
    while (stuck) absl::SleepFor(absl::Milliseconds(1));
    return failing ? absl::UnavailableError("failing") : absl::OkStatus();
  }

  mutable std::mutex mutex_;
  std::map<BlockKey, StoredSegment> held_;
};

class TieredStoreTest : public testing::Test {
 protected:
  ~TieredStoreTest() override { tier_->stuck = tier_->stuck_loading = false; }

  // A put of `tokens` with EXACT of everything and COMPACT where there is.
  absl::StatusOr<PutStats> Put(const std::vector<uint32_t>& tokens, Durability durability,
                               absl::Time deadline = absl::InfiniteFuture()) {
    PutPlan plan;
    plan.context = context_;
    plan.token_ids = tokens;
    plan.durability = durability;
    auto session = puts_.Begin(plan, deadline);
    if (!session.ok()) return session.status();
    needed_ = (*session)->needed_segments();
    const absl::Status sent = SendAll(**session, [&](int64_t index, int layer, Part part) {
      const int tokens_here =
          static_cast<int>(std::min<size_t>(kS, tokens.size() - static_cast<size_t>(index) * kS));
      std::mt19937 rng(static_cast<unsigned>(index * 100 + layer * 2 + static_cast<int>(part)));
      return RandomPart(rng, kSmall, tokens_here);
    });
    if (!sent.ok()) return sent;
    return (*session)->Commit(deadline);
  }
  std::vector<BlockKey> Keys(const std::vector<uint32_t>& tokens) {
    return ChainKeys(context_->ns, tokens).segments;
  }
  void EvictAll() {
    while (store_.store.Evict(int64_t{1} << 40) > 0) continue;
  }
  std::vector<OpenSegment> Open(std::span<const BlockKey> keys, std::vector<SegmentForm> forms,
                                absl::Time deadline = absl::InfiniteFuture()) {
    std::vector<SegmentWant> wants;
    for (const BlockKey& key : keys) wants.push_back({key, forms});
    auto open = reader_.Open(wants, deadline);
    EXPECT_TRUE(open.ok()) << open.status();
    return *std::move(open);
  }

  std::mt19937 rng_{std::random_device()()};
  std::shared_ptr<const NamespaceContext> context_ = SmallContext();
  StoreFixture store_;
  ReferenceBackend backend_;
  std::shared_ptr<FakeTier> tier_ = std::make_shared<FakeTier>();
  TieredStore tiers_{&store_.store, {tier_}};
  PutManager puts_{&store_.store, &backend_, 16, &tiers_};
  SegmentReader reader_{&store_.store, &backend_, MemoryBudget::Create("scratch", 1 << 24), nullptr,
                        &tiers_};
  std::vector<uint32_t> tokens_ = RandomTokens(rng_, 4 * kS + 5);
  std::vector<BlockKey> keys_ = Keys(tokens_);
  int64_t needed_ = 0;
};

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
