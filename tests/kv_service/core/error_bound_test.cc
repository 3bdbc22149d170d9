// The contract of lossiness: what a put and a fetch may demand about errors.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "compute/base/bfloat16.h"
#include "core_fixtures.h"
#include "kv_service/core/segment_reader.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;
using Code = absl::StatusCode;

constexpr SegmentForm kE = SegmentForm::kExact;
constexpr SegmentForm kC = SegmentForm::kCompact;
constexpr SegmentForm kD = SegmentForm::kDense;
constexpr SegmentForm kL = SegmentForm::kLossless;
constexpr float kBound = 0.3f;  // smooth segments are below, noise is above

// Segments 0 to 3 and 5 are smooth along time; 4 is noise in one part of one layer.
class ErrorBoundTest : public testing::Test {
 protected:
  PutPlan Plan(float bound, SegmentForm exact_form = kE, int64_t keep_exact_from = 100) {
    PutPlan plan;
    plan.context = context_;
    plan.token_ids = tokens_;
    plan.keep_exact_from = keep_exact_from;
    plan.exact_form = exact_form;
    plan.max_relative_error = bound;
    return plan;
  }
  std::vector<uint16_t> Tensor(int64_t index, int layer, Part part) {
    auto values = RandomPart(rng_, kSmall, kS);
    if (index == 4 && layer == 1 && part == Part::kK) {
      std::normal_distribution<float> normal;
      for (uint16_t& v : values) v = FloatToBf16(normal(rng_));
    }
    return values;
  }
  void Put(const PutPlan& plan) {
    auto session = puts_.Begin(plan);
    ASSERT_TRUE(session.ok()) << session.status();
    needed_ = (*session)->needed_segments();
    ASSERT_TRUE(SendAll(**session, [&](int64_t i, int l, Part p) { return Tensor(i, l, p); }).ok());
    const auto stats = (*session)->Commit();
    ASSERT_TRUE(stats.ok()) << stats.status();
    stats_ = *stats;
  }
  std::vector<OpenSegment> Open(std::vector<SegmentForm> forms, float bound) {
    std::vector<SegmentWant> wants;
    for (const BlockKey& key : keys_) wants.push_back({key, forms, bound});
    auto open = reader_.Open(wants);
    EXPECT_TRUE(open.ok()) << open.status();
    return open.ok() ? *std::move(open) : std::vector<OpenSegment>(keys_.size());
  }
  bool Holds(int64_t index, SegmentForm form) {
    const auto stored = f_.store.Get(keys_);
    return stored[index].has_value() && stored[index]->forms[form] != nullptr;
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 rng_{seed_};
  std::shared_ptr<const NamespaceContext> context_ = SmallContext();
  StoreFixture f_;
  ReferenceBackend backend_;
  PutManager puts_{&f_.store, &backend_, 3};
  std::shared_ptr<MemoryBudget> scratch_ = MemoryBudget::Create("scratch memory", 1 << 20);
  SegmentReader reader_{&f_.store, &backend_, scratch_};
  std::vector<uint32_t> tokens_ = RandomTokens(rng_, 6 * kS);
  std::vector<BlockKey> keys_ = f_.Keys(MakeChain(context_, tokens_));
  PutStats stats_;
  int64_t needed_ = 0;
};

TEST_F(ErrorBoundTest, APutKeepsExactDataOfSegmentsBeyondItsBound) {
  for (const SegmentForm form : {kE, kL}) {
    tokens_ = RandomTokens(rng_, 6 * kS);
    keys_ = f_.Keys(MakeChain(context_, tokens_));
    Put(Plan(kBound, form));
    for (int i = 1; i < 6; ++i) {
      EXPECT_TRUE(Holds(i, kC)) << i;
      EXPECT_EQ(Holds(i, form), i == 4) << i;
    }
    EXPECT_EQ(stats_.bounded_segments, 1);
    EXPECT_GT(stats_.max_relative_error, kBound);
  }
  EXPECT_LT(f_.store.Get(keys_)[3]->forms[kC]->max_relative_error(), kBound);
}

TEST_F(ErrorBoundTest, WithoutABoundNothingIsKeptForIt) {
  Put(Plan(kNoErrorBound));
  EXPECT_FALSE(Holds(4, kE));
  EXPECT_EQ(stats_.bounded_segments, 0);
}

TEST_F(ErrorBoundTest, WhatIsKeptForABoundIsNotEvictedBeforeItsSegment) {
  Put(Plan(kBound, kE, 3));
  EXPECT_TRUE(Holds(3, kE) && Holds(4, kE) && Holds(5, kE));
  f_.store.Evict(1);
  EXPECT_FALSE(Holds(3, kE));
  for (int left = 0; f_.store.Describe(keys_[4]).ok(); ++left) {
    EXPECT_TRUE(Holds(4, kE));
    ASSERT_LT(left, 10);
    f_.store.Evict(1);
  }
}

TEST_F(ErrorBoundTest, ALaterPutWithABoundAsksForWhatItLacks) {
  Put(Plan(kNoErrorBound));
  Put(Plan(10));
  EXPECT_EQ(needed_, 0) << "everything is within it";
  Put(Plan(kBound));
  EXPECT_EQ(needed_, 1);
  EXPECT_TRUE(Holds(4, kE));
  EXPECT_FALSE(Holds(3, kE));
  EXPECT_EQ(stats_.segments_deduplicated, 6);
  EXPECT_EQ(stats_.bounded_segments, 1);
}

TEST_F(ErrorBoundTest, ALaterPutWithABoundProtectsWhatIsThere) {
  Put(Plan(kNoErrorBound, kE, 4));
  Put(Plan(kBound));
  EXPECT_EQ(needed_, 0);
  f_.store.Evict(1);
  EXPECT_TRUE(Holds(4, kE)) << "of 4 and 5, only 4 has a successor, and it is beyond the bound";
}

TEST_F(ErrorBoundTest, AFetchWithinItsBoundIsAsAnyOther) {
  Put(Plan(kBound));
  const auto open = Open({kC, kE}, 10);
  for (int i = 1; i < 6; ++i) {
    EXPECT_EQ(open[i].form, kC) << i;
    EXPECT_GT(open[i].max_relative_error, 0);
    EXPECT_GE(open[i].max_relative_error, open[i].mean_relative_error);
  }
  EXPECT_EQ(f_.metrics->error_bound_fallbacks, 0);
}

TEST_F(ErrorBoundTest, SegmentsBeyondTheBoundComeExactly) {
  for (const SegmentForm kept : {kE, kL}) {
    tokens_ = RandomTokens(rng_, 6 * kS);
    keys_ = f_.Keys(MakeChain(context_, tokens_));
    Put(Plan(kBound, kept));
    for (const SegmentForm accepted : {kE, kL, kD}) {
      auto open = Open({kC, accepted}, kBound);
      EXPECT_EQ(open[3].form, kC);
      EXPECT_EQ(open[4].form, accepted);
      EXPECT_EQ(open[4].source->form(), kept);
      EXPECT_EQ(open[4].max_relative_error, 0);
      EXPECT_TRUE(reader_.ReadLayer(std::span(open), 1).ok());
    }
    EXPECT_EQ(Open({kC, kE, kL}, kBound)[4].form, kept) << "the one that is held comes first";
    EXPECT_EQ(Open({kC, kL, kE}, kBound)[4].form, kept);
  }
  EXPECT_EQ(f_.metrics->error_bound_fallbacks, 10);
}

TEST_F(ErrorBoundTest, WhereNothingIsWithinTheBoundTheSegmentIsMissing) {
  Put(Plan(kBound));
  const auto only_compact = Open({kC}, kBound);
  EXPECT_EQ(only_compact[4].missing, MissingReason::kErrorBound);
  EXPECT_GT(only_compact[4].max_relative_error, kBound) << "what it would take";
  EXPECT_EQ(only_compact[4].Bytes(0, 1), 0);
  EXPECT_EQ(only_compact[3].missing, MissingReason::kNone);
  const auto all = Open({kC, kD, kE, kL}, 1e-6f);
  EXPECT_EQ(all[3].missing, MissingReason::kErrorBound) << "no exact data was kept";
  EXPECT_EQ(all[4].form, kE);
  EXPECT_EQ(Open({kE}, kBound)[3].missing, MissingReason::kFormNotHeld) << "not for the bound";
  EXPECT_EQ(f_.metrics->error_bound_misses, 1 + 4);
  auto reading = Open({kC}, kBound);
  EXPECT_EQ((*reader_.ReadLayer(std::span(reading), 0))[4].missing, MissingReason::kErrorBound);
}

TEST_F(ErrorBoundTest, CompactThatIsMadeForTheFetchIsMeasuredFirst) {
  Put(Plan(kNoErrorBound, kL, 0));
  for (const int i : {3, 4}) {
    f_.store.DropDamaged(keys_[i], f_.store.Get(keys_)[i]->forms[kC]);
  }
  const auto open = Open({kC}, kBound);
  EXPECT_EQ(open[3].form, kC);
  EXPECT_GT(open[3].max_relative_error, 0);
  EXPECT_EQ(open[4].missing, MissingReason::kErrorBound);
  EXPECT_TRUE(Holds(4, kC)) << "good for readers with other bounds";
}

TEST_F(ErrorBoundTest, WithoutRoomToMeasureNothingIsPromised) {
  Put(Plan(kNoErrorBound, kE, 0));
  f_.store.DropDamaged(keys_[3], f_.store.Get(keys_)[3]->forms[kC]);
  const SegmentPin pin = f_.store.Pin(keys_);
  auto hold = f_.budget->TryReserve(f_.budget->limit() - f_.budget->used() - 1000);
  ASSERT_TRUE(hold.ok());
  std::vector<SegmentWant> wants = {{keys_[3], {kC}, kBound}};
  EXPECT_EQ(reader_.Open(wants).status().code(), Code::kResourceExhausted);
  wants[0].max_relative_error = kNoErrorBound;
  EXPECT_TRUE((*reader_.Open(wants))[0].error_unknown);
  wants = {{keys_[3], {kC, kE}, kBound}};
  EXPECT_EQ((*reader_.Open(wants))[0].form, kE);
}

TEST_F(ErrorBoundTest, BoundsThatAreNoBoundsAreRefused) {
  for (const float bound : {-0.1f, std::numeric_limits<float>::quiet_NaN()}) {
    const auto open = reader_.Open(std::vector{SegmentWant{keys_[0], {kC}, bound}});
    EXPECT_EQ(open.status().code(), Code::kInvalidArgument);
    EXPECT_THAT(open.status().ToString(), HasSubstr("max_relative_error"));
    EXPECT_THAT(puts_.Begin(Plan(bound)).status().ToString(), HasSubstr("max_relative_error"));
  }
  PutPlan plan = Plan(kNoErrorBound, kC);
  EXPECT_THAT(puts_.Begin(plan).status().ToString(), HasSubstr("exact_form is compact"));
  plan = Plan(kBound);
  plan.payload = PutPayload::kCompact;
  EXPECT_THAT(puts_.Begin(plan).status().ToString(), HasSubstr("payload_form is COMPACT"));
}

}  // namespace
}  // namespace fourierkv
