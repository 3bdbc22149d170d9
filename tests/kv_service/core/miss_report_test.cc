#include "kv_service/core/miss_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core_fixtures.h"

namespace fourierkv {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

class MissReportTest : public testing::Test {
 protected:
  void Put(const std::shared_ptr<const NamespaceContext>& context,
           std::span<const uint32_t> tokens) {
    std::vector<StoredSegment> chain = MakeChain(context, tokens);
    for (StoredSegment& segment : chain) {
      segment.forms[SegmentForm::kExact] = MakeForm(segment, SegmentForm::kExact, *budget_);
    }
    ASSERT_TRUE(store_.Commit(std::move(chain)).ok());
  }
  MissReport Explain(const CacheNamespace& ns, std::span<const uint32_t> tokens) {
    auto report = ExplainMiss(store_, history_, ns, tokens);
    EXPECT_TRUE(report.ok()) << report.status();
    return *std::move(report);
  }

  std::mt19937 rng_{std::random_device{}()};
  std::shared_ptr<const NamespaceContext> context_ = SmallContext();
  RemovalHistory history_;
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create("segment memory", 64 << 20);
  SegmentStore store_{budget_, std::make_shared<StoreMetrics>(), &absl::Now, &history_};
  std::vector<uint32_t> tokens_ = RandomTokens(rng_, 3 * kS + 7);
};

TEST_F(MissReportTest, WhatIsHeldIsDescribed) {
  Put(context_, tokens_);
  const MissReport report = Explain(context_->ns, tokens_);
  ASSERT_THAT(report.segments, SizeIs(4));
  const auto chain = MakeChain(context_, tokens_);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(report.segments[i].key, chain[i].key);
    EXPECT_EQ(report.segments[i].index, i);
    EXPECT_EQ(report.segments[i].tokens, i == 3 ? 7 : kS);
    EXPECT_TRUE(report.segments[i].held.has_value());
    EXPECT_FALSE(report.segments[i].removal.has_value());
  }
  EXPECT_THAT(report.elsewhere, IsEmpty());
}

TEST_F(MissReportTest, WhatWentIsToldApartFromWhatNeverCame) {
  Put(context_, std::span(tokens_).first(3 * kS));
  const auto chain = MakeChain(context_, tokens_);
  store_.Evict(1);
  ASSERT_TRUE(store_.Delete(std::vector{chain[1].key}, false).ok());
  const MissReport report = Explain(context_->ns, tokens_);
  EXPECT_TRUE(report.segments[0].held.has_value());
  EXPECT_EQ(report.segments[1].removal->reason, RemovalReason::kDeleted);
  EXPECT_EQ(report.segments[2].removal->reason, RemovalReason::kEvicted);
  EXPECT_FALSE(report.segments[3].held.has_value());
  EXPECT_FALSE(report.segments[3].removal.has_value());
  EXPECT_EQ(report.history_since, absl::InfinitePast());
}

TEST_F(MissReportTest, WhatOnlyATierHoldsIsNoMiss) {
  Put(context_, tokens_);
  store_.Evict(1);
  const auto chain = MakeChain(context_, tokens_);
  const BlockKey evicted = chain.back().key;
  const auto tiers = [&](std::span<const BlockKey> keys) {
    std::vector<std::optional<SegmentSummary>> held(keys.size());
    SegmentSummary summary;
    summary.forms[SegmentForm::kExact].bytes = 1;
    for (size_t i = 0; i < keys.size(); ++i) {
      if (keys[i] == evicted) held[i] = summary;
    }
    return held;
  };
  const auto report = ExplainMiss(store_, history_, context_->ns, tokens_, 0, tiers);
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(report->segments[3].held.has_value());
  EXPECT_FALSE(report->segments[3].removal.has_value());
  EXPECT_FALSE(report->segments[0].held.has_value());  // the lookup alone decides
}

TEST_F(MissReportTest, DamageIsToldEvenOfASegmentWhosePlaceIsKept) {
  Put(context_, tokens_);
  const BlockKey key = MakeChain(context_, tokens_)[0].key;
  store_.DropDamaged(key, store_.Get(std::vector{key})[0]->forms[SegmentForm::kExact]);
  const MissReport report = Explain(context_->ns, tokens_);
  EXPECT_FALSE(report.segments[0].held.has_value());
  EXPECT_EQ(report.segments[0].removal->reason, RemovalReason::kDamaged);
  EXPECT_TRUE(report.segments[1].held.has_value());
}

TEST_F(MissReportTest, TheNamespaceThatHoldsThePromptIsNamedByItsFields) {
  Put(context_, tokens_);
  CacheNamespace asked = context_->ns;
  asked.model_revision = "another";
  asked.tp_rank = 1;
  asked.tp_size = 2;
  const MissReport report = Explain(asked, tokens_);
  ASSERT_THAT(report.elsewhere, SizeIs(1));
  EXPECT_EQ(report.elsewhere[0].root, context_->root);
  EXPECT_EQ(report.elsewhere[0].matched_segments, 4);
  std::vector<std::string> fields;
  for (const FieldDifference& d : report.elsewhere[0].differences) fields.push_back(d.field);
  EXPECT_THAT(fields, ElementsAre("model_revision", "tp_rank", "tp_size"));
  EXPECT_EQ(report.elsewhere[0].differences[0].asked, "another");
  EXPECT_EQ(report.elsewhere[0].differences[0].held, context_->ns.model_revision);
}

TEST_F(MissReportTest, TheLeastDifferentNamespaceComesFirstAndOtherPromptsAreNoMatch) {
  Put(context_, tokens_);
  const auto exact_only = SmallContext(/*with_profile=*/false, "salt");
  Put(exact_only, std::span(tokens_).first(kS));
  Put(SmallContext(true, "third"), RandomTokens(rng_, kS));
  CacheNamespace asked = context_->ns;
  asked.lora_id = "adapter";
  const MissReport report = Explain(asked, tokens_);
  ASSERT_THAT(report.elsewhere, SizeIs(2));
  EXPECT_EQ(report.elsewhere[0].root, context_->root);
  EXPECT_EQ(report.elsewhere[1].root, exact_only->root);
  EXPECT_EQ(report.elsewhere[1].matched_segments, 1);
  EXPECT_THAT(Explain(asked, RandomTokens(rng_, 2 * kS)).elsewhere, IsEmpty());
}

TEST_F(MissReportTest, SaltsAreComparedButNeverTold) {
  Put(SmallContext(true, "secret"), tokens_);
  const MissReport report = Explain(context_->ns, tokens_);
  ASSERT_THAT(report.elsewhere, SizeIs(1));
  ASSERT_THAT(report.elsewhere[0].differences, SizeIs(1));
  EXPECT_EQ(report.elsewhere[0].differences[0].field, "tenant_salt");
  EXPECT_EQ(report.elsewhere[0].differences[0].asked, "");
  EXPECT_EQ(report.elsewhere[0].differences[0].held, "");
}

TEST_F(MissReportTest, EveryFieldOfANamespaceIsCompared) {
  const CacheNamespace ns = SmallNamespace();
  CacheNamespace other = ns;
  other.tenant_salt += "x";
  other.model_id += "x";
  other.model_revision += "x";
  other.weight_dtype += "x";
  other.kv_dtype = ns.kv_dtype == KvDtype::kBf16 ? KvDtype::kFp16 : KvDtype::kBf16;
  ++other.geometry.layers;
  ++other.geometry.kv_heads;
  ++other.geometry.head_dim;
  other.rope += "x";
  ++other.tp_rank;
  ++other.tp_size;
  other.lora_id += "x";
  other.profile_id = ns.profile_id.has_value() ? std::nullopt : std::optional(ns.RootKey());
  other.segment_tokens *= 2;
  EXPECT_THAT(Differences(ns, other), SizeIs(14));
  EXPECT_THAT(Differences(ns, ns), IsEmpty());
}

TEST_F(MissReportTest, WholeSequencesAreFoundByTheirCapacity) {
  const auto context = SmallSequenceContext();
  EXPECT_TRUE(ExplainMiss(store_, history_, context->ns, tokens_, 1000).ok());
  EXPECT_TRUE(
      absl::IsInvalidArgument(ExplainMiss(store_, history_, context->ns, tokens_, 0).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(ExplainMiss(store_, history_, context_->ns, tokens_, 9).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ExplainMiss(store_, history_, context_->ns, {}).status()));
}

}  // namespace
}  // namespace fourierkv
