// What is deleted does not come back, whoever reads it meanwhile, and calls that are given up are
// no failures of a tier.

#include <gtest/gtest.h>

#include "kv_service/core/deletion_gate.h"
#include "tiered_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;

class TieredDeleteTest : public TieredStoreTest {
 protected:
  void SetUp() override {
    ASSERT_TRUE(Put(tokens_, Durability::kDisk).ok());
    EvictAll();
  }
  bool MemoryHoldsAnything() {
    for (const SegmentSummary& row : store_.store.List()) {
      if (row.bytes() > 0) return true;
    }
    return false;
  }
  template <typename Condition>
  static bool Eventually(const Condition& condition) {
    for (const absl::Time limit = absl::Now() + absl::Minutes(1); absl::Now() < limit;) {
      if (condition()) return true;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return false;
  }
};

TEST_F(TieredDeleteTest, WhatAReaderLoadedBeforeDoesNotComeBackAfter) {
  tier_->stuck_with_loaded = true;
  std::thread reader([&] {
    const auto open = Open(std::span(keys_).first(1), {SegmentForm::kExact});
    EXPECT_EQ(open[0].missing, MissingReason::kNone) << "it was there when it was asked for";
  });
  ASSERT_TRUE(Eventually([&] { return tier_->loads > 0; }));
  ASSERT_TRUE(tiers_.Delete(std::span(keys_).first(1), absl::InfiniteFuture()).ok());
  tier_->stuck_with_loaded = false;
  reader.join();
  EXPECT_FALSE(MemoryHoldsAnything());
  EXPECT_NE(Open(std::span(keys_).first(1), {SegmentForm::kExact})[0].missing,
            MissingReason::kNone);
}

TEST_F(TieredDeleteTest, WhatATierHasStillToRemoveIsNotBroughtBack) {
  tier_->stuck_removing = true;
  const auto end = std::make_shared<CallEnd>();
  std::thread caller([&] {
    EXPECT_TRUE(Eventually([&] { return tier_->removals > 0; }));
    end->Come(absl::Now());
  });
  EXPECT_EQ(tiers_.Delete(keys_, {absl::InfiniteFuture(), end}).status().code(),
            StatusCode::kCancelled);
  caller.join();
  // Read it can be, until it is gone; kept it is not, nor are those that continue it.
  Open(keys_, {SegmentForm::kExact});
  EXPECT_FALSE(MemoryHoldsAnything());
  const auto match = tiers_.Match(keys_, std::nullopt, absl::Minutes(1), absl::InfiniteFuture());
  ASSERT_TRUE(match.ok()) << match.status();
  EXPECT_FALSE(match->lease.has_value()) << "on what is being deleted";
  tier_->stuck_removing = false;
  ASSERT_TRUE(Eventually([&] { return !tier_->Holds(keys_[0]); }));
  EXPECT_NE(Open(keys_, {SegmentForm::kExact})[0].missing, MissingReason::kNone);
  // And it can be put again.
  ASSERT_TRUE(Put(tokens_, Durability::kDisk).ok());
  EXPECT_EQ(Open(keys_, {SegmentForm::kExact})[0].missing, MissingReason::kNone);
}

TEST_F(TieredDeleteTest, ADeleteThatIsRefusedForbidsNothing) {
  const auto lease = tiers_.Match(keys_, std::nullopt, absl::Minutes(1), absl::InfiniteFuture());
  ASSERT_TRUE(lease.ok() && lease->lease.has_value());
  EXPECT_EQ(tiers_.Delete(keys_, absl::InfiniteFuture()).status().code(),
            StatusCode::kFailedPrecondition);
  Open(keys_, {SegmentForm::kExact});
  EXPECT_TRUE(MemoryHoldsAnything());
}

TEST_F(TieredDeleteTest, CallsThatAreGivenUpAreNoFailures) {
  const TierMetrics& metrics = tiers_.tiers()[0]->metrics();
  const uint64_t misses = metrics.misses;
  tier_->stuck = tier_->stuck_loading = true;
  const auto end = std::make_shared<CallEnd>();
  end->Come(absl::Now());
  const Patience cancelled(absl::InfiniteFuture(), end);
  TierRunner& runner = *tiers_.tiers()[0];
  auto segments = MakeChain(context_, tokens_);
  EXPECT_EQ(runner.Store({segments[0]}, cancelled).code(), StatusCode::kCancelled);
  const auto loaded = runner.Load({{segments[0], SegmentForm::kExact}}, store_.budget, cancelled);
  EXPECT_EQ(loaded[0].status().code(), StatusCode::kCancelled);
  EXPECT_EQ(metrics.cancelled, 2);
  EXPECT_EQ(metrics.store_failures, 0);
  EXPECT_EQ(metrics.misses, misses);
  EXPECT_EQ(metrics.late, 0);
  // Late ones are.
  const Patience late = absl::Now() - absl::Seconds(1);
  EXPECT_EQ(runner.Store({segments[0]}, late).code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(
      runner.Load({{segments[0], SegmentForm::kExact}}, store_.budget, late)[0].status().code(),
      StatusCode::kDeadlineExceeded);
  EXPECT_EQ(metrics.store_failures, 1);
  EXPECT_EQ(metrics.late, 1);
}

using TieredPinTest = TieredDeleteTest;

TEST_F(TieredPinTest, PinsWhatOnlyTheTierHolds) {
  const BlockKey deep = keys_[2];
  const absl::Time before = absl::Now();
  const auto pin = tiers_.Pin(std::span(&deep, 1), absl::Hours(1), absl::InfiniteFuture());
  ASSERT_TRUE(pin.ok()) << pin.status();
  EXPECT_EQ(tier_->loads, 0) << "it stays where it is";
  EXPECT_GE(tier_->WishedFor(deep), before + absl::Hours(1));
  EvictAll();
  for (const BlockKey& key : {keys_[0], deep}) {
    EXPECT_EQ(tiers_.Delete(std::span(&key, 1), absl::InfiniteFuture()).status().code(),
              StatusCode::kFailedPrecondition);
    EXPECT_TRUE(tier_->Holds(key));
  }
  ASSERT_TRUE(store_.store.Release(pin->id).ok());
  EXPECT_TRUE(tiers_.Delete(keys_, absl::InfiniteFuture()).ok());
}

TEST_F(TieredPinTest, WhatIsNowhereIsNamedAndNothingIsPinned) {
  const std::vector<BlockKey> keys = {keys_[0], BlockKey()};
  const auto pin = tiers_.Pin(keys, absl::Hours(1), absl::InfiniteFuture());
  EXPECT_EQ(pin.status().code(), StatusCode::kNotFound);
  EXPECT_NE(pin.status().message().find(BlockKey().ToHex()), std::string::npos);
  EXPECT_EQ(store_.store.Stats().leases, 0);
  EXPECT_EQ(tiers_.Pin({}, absl::Hours(1), absl::InfiniteFuture()).status().code(),
            StatusCode::kInvalidArgument);
  tier_->failing = true;
  EXPECT_EQ(tiers_.Pin(std::span(keys_).subspan(2, 1), absl::Hours(1), absl::InfiniteFuture())
                .status()
                .code(),
            StatusCode::kNotFound);
}

TEST(DeletionGateTest, RefusesWhatWasDeletedSinceTheReaderEntered) {
  std::mt19937 rng(1);
  const auto keys = ChainKeys(SmallNamespace(), RandomTokens(rng, 3 * kS)).segments;
  const auto first = std::span(keys).first(1);
  const auto second = std::span(keys).subspan(1, 1);
  DeletionGate gate;
  int brought = 0;
  const auto bring = [&](const DeletionGate::Reader& reader, std::span<const BlockKey> some) {
    const int before = brought;
    const bool let_through = gate.Bring(reader, some, [&] { ++brought; });
    EXPECT_EQ(brought, before + (let_through ? 1 : 0));
    return let_through;
  };
  const auto before = gate.Enter();
  EXPECT_TRUE(bring(before, keys));
  auto deletion = gate.Begin(first);
  auto twice = gate.Begin(first);
  const auto meanwhile = gate.Enter();
  for (const auto* reader : {&before, &meanwhile}) {
    EXPECT_FALSE(bring(*reader, first));
    EXPECT_FALSE(bring(*reader, keys)) << "one of them is being deleted";
    EXPECT_TRUE(bring(*reader, second));
  }
  deletion.reset();
  EXPECT_FALSE(bring(gate.Enter(), first)) << "another deletion runs";
  twice.reset();
  EXPECT_FALSE(bring(before, first));
  EXPECT_FALSE(bring(meanwhile, first));
  EXPECT_TRUE(bring(gate.Enter(), first));
}

}  // namespace
}  // namespace fourierkv
