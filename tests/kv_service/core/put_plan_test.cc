#include "kv_service/core/put_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core_fixtures.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;

PutPlan Plan(int64_t tokens) {
  PutPlan plan;
  plan.context = SmallContext();
  plan.token_ids.resize(tokens);
  return plan;
}

std::string Fault(const PutPlan& plan) {
  const absl::Status status = CheckPutPlan(plan);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return status.ToString();
}

TEST(PutPlanTest, BadPlansAreRefusedByField) {
  EXPECT_TRUE(CheckPutPlan(Plan(1)).ok());
  EXPECT_TRUE(CheckPutPlan(Plan(kMaxPutSegments * kS)).ok());
  EXPECT_THAT(Fault(PutPlan()), HasSubstr("namespace"));
  EXPECT_THAT(Fault(Plan(0)), HasSubstr("token_ids"));
  EXPECT_THAT(Fault(Plan(kMaxPutSegments * kS + 1)), HasSubstr("token_ids"));
  PutPlan plan = Plan(kS);
  plan.parent = Digest{};
  EXPECT_THAT(Fault(plan), HasSubstr("parent_key"));
  plan = Plan(kS);
  plan.first_segment_index = 1;
  EXPECT_THAT(Fault(plan), HasSubstr("parent_key"));
  for (const int64_t index : {int64_t{-1}, kMaxSegmentIndex, INT64_MAX}) {
    plan.first_segment_index = index;
    EXPECT_THAT(Fault(plan), HasSubstr("first_segment_index"));
  }
  plan = Plan(kS);
  plan.keep_exact_from = -1;
  EXPECT_THAT(Fault(plan), HasSubstr("keep_exact_from"));
  plan = Plan(kS);
  plan.payload = static_cast<PutPayload>(0);
  EXPECT_THAT(Fault(plan), HasSubstr("payload_form"));
}

TEST(PutPlanTest, CompactPayloadIsForFullSegmentsBehindTheSink) {
  PutPlan plan = Plan(2 * kS);
  plan.payload = PutPayload::kCompact;
  EXPECT_THAT(Fault(plan), HasSubstr("segment 0"));
  plan.first_segment_index = 1;
  plan.parent = Digest{};
  EXPECT_TRUE(CheckPutPlan(plan).ok());
  plan.token_ids.resize(2 * kS - 1);
  EXPECT_THAT(Fault(plan), HasSubstr("tail"));
  plan.token_ids.resize(kS);
  plan.context = SmallContext(false);
  EXPECT_THAT(Fault(plan), HasSubstr("profile_id"));
}

TEST(PutPlanTest, SegmentsFollowEachOther) {
  PutPlan plan = Plan(2 * kS + 3);
  const auto segments = PlanSegments(plan);
  ASSERT_EQ(segments.size(), 3);
  EXPECT_EQ(segments[0].parent, plan.context->root);
  EXPECT_EQ(segments[1].parent, segments[0].key);
  EXPECT_EQ(segments[2].parent, segments[1].key);
  EXPECT_EQ(segments[2].tokens, 3);
  EXPECT_TRUE(segments[2].tail);
  EXPECT_EQ(segments[2].index, 2);
}

TEST(PutPlanTest, FormsFollowTheRule) {
  const auto with = SmallContext();
  const auto without = SmallContext(false);
  struct Case {
    const NamespaceContext& context;
    int64_t index;
    bool tail;
    bool exact;
    bool compact;
  };
  for (const Case& c : {Case{*with, 0, false, true, false}, Case{*with, 1, false, false, true},
                        Case{*with, 4, false, false, true}, Case{*with, 5, false, true, true},
                        Case{*with, 2, true, true, false}, Case{*without, 1, false, true, false},
                        Case{*without, 7, false, true, false}}) {
    EXPECT_EQ(KeepsExact(c.context, c.index, c.tail, 5), c.exact) << c.index;
    EXPECT_EQ(KeepsCompact(c.context, c.index, c.tail), c.compact) << c.index;
  }
}

}  // namespace
}  // namespace fourierkv
