#include "compute/model/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace fourierkv {
namespace {

Sampler Make(const SamplingOptions& options) { return *Sampler::Create(options); }

TEST(Sampler, GreedyTakesTheLargestAndTheFirstOfEquals) {
  Sampler sampler = Make({});
  const std::vector<float> logits = {0, 3, 1, 3};
  const auto sampled = sampler.Next(logits);
  ASSERT_TRUE(sampled.ok());
  EXPECT_EQ(sampled->token, 1);
  const double sum = 1 + 2 * std::exp(3.0) + std::exp(1.0);
  EXPECT_NEAR(sampled->log_probability, 3 - std::log(sum), 1e-12);
}

TEST(Sampler, FrequenciesFollowTemperature) {
  Sampler sampler = Make({.temperature = 2, .seed = 17});
  const std::vector<float> logits = {2 * std::log(1.0f), 2 * std::log(2.0f), 2 * std::log(5.0f)};
  std::vector<int> count(3);
  for (int i = 0; i < 8000; ++i) ++count[sampler.Next(logits)->token];
  EXPECT_NEAR(count[0], 1000, 150);
  EXPECT_NEAR(count[1], 2000, 200);
  EXPECT_NEAR(count[2], 5000, 250);
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  const std::vector<float> logits = {std::log(0.2f), std::log(0.5f), std::log(0.3f)};
  Sampler most = Make({.temperature = 1, .top_p = 0.7, .seed = 1});
  Sampler best = Make({.temperature = 1, .top_p = 1e-9, .seed = 1});
  std::vector<int> count(3);
  for (int i = 0; i < 1000; ++i) {
    ++count[most.Next(logits)->token];
    EXPECT_EQ(best.Next(logits)->token, 1);
  }
  EXPECT_EQ(count[0], 0);
  EXPECT_GT(count[2], 200);
}

TEST(Sampler, ASeedGivesTheSameTokensEverywhere) {
  Sampler sampler = Make({.temperature = 1, .seed = 42});
  const std::vector<float> logits(10, 1.0f);
  std::vector<int> tokens;
  for (int i = 0; i < 8; ++i) tokens.push_back(sampler.Next(logits)->token);
  EXPECT_THAT(tokens, testing::ElementsAre(7, 6, 7, 1, 9, 0, 5, 3));
}

TEST(Sampler, ExtremesStayInRange) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (double temperature : {1e-300, 1e-3, 100.0}) {
    Sampler sampler = Make({.temperature = temperature, .top_p = 0.5, .seed = seed});
    std::vector<float> logits(37);
    for (float& x : logits) x = static_cast<float>(random()) * 1e28f;
    const auto sampled = sampler.Next(logits);
    ASSERT_TRUE(sampled.ok());
    EXPECT_GE(sampled->token, 0);
    EXPECT_LT(sampled->token, 37);
  }
}

TEST(Sampler, RefusesLogitsThatAreNoNumbers) {
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    for (double temperature : {0.0, 1.0}) {
      Sampler sampler = Make({.temperature = temperature});
      const std::vector<float> logits = {0, bad, 1};
      EXPECT_TRUE(absl::IsInternal(sampler.Next(logits).status()));
    }
  }
  Sampler sampler = Make({});
  EXPECT_TRUE(absl::IsInvalidArgument(sampler.Next({}).status()));
}

TEST(Sampler, RefusesOptionsOutOfBounds) {
  for (double temperature : {-1e-9, 100.001, static_cast<double>(NAN), HUGE_VAL}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Sampler::Create({.temperature = temperature}).status()));
  }
  for (double top_p : {0.0, -1.0, 1.0001, static_cast<double>(NAN)}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Sampler::Create({.top_p = top_p}).status()));
  }
}

}  // namespace
}  // namespace fourierkv
