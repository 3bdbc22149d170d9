// Figures from known logits and counts.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "clients/eval/eval_context.h"
#include "clients/eval/logits_math.h"

namespace fourierkv {
namespace {

TEST(LogitsMathTest, ProbabilitiesOfTwoTokens) {
  const std::vector<float> even = {3, 3}, uneven = {static_cast<float>(std::log(3.0)), 0};
  EXPECT_NEAR(Nll(even, 1), std::log(2.0), 1e-6);
  EXPECT_NEAR(Nll(uneven, 0), -std::log(0.75), 1e-6);
  EXPECT_NEAR(KlDivergence(even, uneven), 0.5 * std::log(0.5 / 0.75) + 0.5 * std::log(0.5 / 0.25),
              1e-6);
  EXPECT_EQ(KlDivergence(uneven, uneven), 0);
  EXPECT_EQ(Likeliest(even), 0);
  EXPECT_NEAR(Margin(uneven, 1), -std::log(3.0), 1e-6);
  EXPECT_EQ(Margin(even, 0), 0);
}

TEST(LogitsMathTest, LargeLogitsDoNotOverflow) {
  const std::vector<float> large = {1e4f, -1e4f, 1e4f};
  EXPECT_NEAR(Nll(large, 0), std::log(2.0), 1e-6);
  EXPECT_TRUE(std::isfinite(KlDivergence(large, large)));
}

TEST(TailScoreTest, QuantilesAreValuesThatSomeTokenHas) {
  TailScore score;
  for (int i = 1; i <= 200; ++i) score.kl.push_back(static_cast<float>(i));
  EXPECT_EQ(score.kl_quantile(0.99), 198);
  EXPECT_EQ(score.kl_quantile(1), 200);
  EXPECT_EQ(score.kl_quantile(0), 1);
  EXPECT_DOUBLE_EQ(score.mean_kl(), 100.5);
  score.kl = {7};
  EXPECT_EQ(score.kl_quantile(0.99), 7);
}

TEST(TailScoreTest, NothingMeasuredGivesZeros) {
  const TailScore none;
  EXPECT_EQ(none.bits_per_byte(), 0);
  EXPECT_EQ(none.mean_kl(), 0);
  EXPECT_EQ(none.kl_quantile(0.99), 0);
  EXPECT_EQ(none.top_agreement(), 0);
}

TEST(CombineTest, CountsAddUpAndMeansAreWeighted) {
  FormMetrics a, b;
  a.bytes = {.compact_payload = 10, .compact_dense = 100, .whole = 20, .whole_dense = 110};
  b.bytes = {.compact_payload = 30, .compact_dense = 100, .whole = 40, .whole_dense = 110};
  a.tasks.resize(1);
  a.tasks[0].questions = 1;
  a.tasks[0].right = 1;
  a.tasks[0].picks = {1};
  a.tasks[0].nll = 1;
  a.tasks[0].smallest_margin = 5;
  b.tasks.resize(2);
  b.tasks[1].questions = 3;
  b.tasks[1].right = 2;
  b.tasks[1].picks = {0, 2};
  b.tasks[1].nll = 3;
  b.tasks[1].smallest_margin = 6;
  b.tasks[0].task = RecallTask::kCopy;
  a.tail.nll = {static_cast<float>(std::log(2.0))};
  b.tail.nll = {0, 0, 0};
  a.tail.kl = b.tail.kl = {1, 1};
  a.tail.same_top = 2;
  a.attention_error = {0.1, 0.2};
  b.attention_error = {0.3, 0.4};
  const FormMetrics both = Combine(std::vector<FormMetrics>{a, b});
  EXPECT_DOUBLE_EQ(both.bytes.payload_ratio(), 5);
  EXPECT_DOUBLE_EQ(both.bytes.bits_per_element(), 3.2);
  ASSERT_EQ(both.tasks.size(), 2);
  EXPECT_EQ(both.tasks[0].questions, 4);
  EXPECT_EQ(both.tasks[0].right, 3);
  EXPECT_THAT(both.tasks[0].picks, testing::ElementsAre(1, 2));
  EXPECT_DOUBLE_EQ(both.tasks[0].nll, 2.5);
  EXPECT_EQ(both.tasks[0].smallest_margin, 5);
  EXPECT_EQ(both.tasks[1].task, RecallTask::kCopy);
  EXPECT_NEAR(both.tail.bits_per_byte(), 0.25, 1e-6);
  EXPECT_EQ(both.tail.top_agreement(), 0.5);
  EXPECT_THAT(both.attention_error,
              testing::ElementsAre(testing::DoubleEq(0.2), testing::DoubleEq(0.3)));
}

}  // namespace
}  // namespace fourierkv
