#include "clients/search/allocation.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fourierkv {
namespace {

std::vector<Representation> Some() {
  return *ParseRepresentations("M1x16,M8,int2,int4,int8", BasisKind::kDct2, 256);
}

// Errors that fall with every richer representation, as real ones do, at random scales.
std::vector<HeadCosts> RandomCosts(std::mt19937& random, size_t heads, size_t channels,
                                   size_t representations) {
  std::uniform_real_distribution<double> uniform(0.05, 0.7);
  std::normal_distribution<double> scale(0, 3);
  std::vector<HeadCosts> costs(heads);
  for (HeadCosts& head : costs) {
    head.errors.resize(representations * channels);
    for (size_t d = 0; d < channels; ++d) {
      double error = std::exp(scale(random));
      for (size_t r = 0; r < representations; ++r) {
        head.errors[r * channels + d] = error;
        error *= uniform(random);
      }
    }
  }
  return costs;
}

double HarmOf(const std::vector<HeadCosts>& costs, const std::vector<double>& sensitivities,
              const std::vector<HeadChoice>& choice) {
  double harm = 0;
  for (size_t h = 0; h < costs.size(); ++h) {
    const size_t channels = choice[h].size();
    for (size_t d = 0; d < channels; ++d) {
      harm += sensitivities[h] * costs[h].errors[choice[h][d] * channels + d];
    }
  }
  return harm;
}

class AllocationTest : public testing::Test {
 protected:
  const uint32_t seed_ = std::random_device()();
  testing::ScopedTrace trace_{__FILE__, __LINE__, testing::Message() << "seed " << seed_};
  std::mt19937 random_{seed_};
  const AllocationOptions any_band_{.smallest_band = 1};
};

TEST_F(AllocationTest, KeepsTheBudgetAndUsesNearlyAllOfIt) {
  const auto representations = Some();
  const auto costs = RandomCosts(random_, 8, 64, representations.size());
  const std::vector<double> sensitivities(8, 1.0);
  for (const double bits : {0.2, 0.5, 1.0, 2.5, 6.0}) {
    const auto result = Allocate(costs, sensitivities, representations, bits, any_band_);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_LE(result->bits_per_value, bits);
    EXPECT_GT(result->bits_per_value, bits - 0.05);
    EXPECT_NEAR(result->harm, HarmOf(costs, sensitivities, result->heads), 1e-9 * result->harm);
  }
}

// The Lagrangian's solution is optimal for the bits that it uses: nothing of at most those bits
// does less harm. Checked against every assignment of a small problem.
TEST_F(AllocationTest, NothingCheaperDoesLessHarm) {
  const auto representations = Some();
  const size_t n = representations.size(), channels = 5;
  const auto costs = RandomCosts(random_, 1, channels, n);
  const std::vector<double> one = {1.0};
  for (const double bits : {0.5, 2.0, 4.0}) {
    const auto result = Allocate(costs, one, representations, bits, any_band_);
    ASSERT_TRUE(result.ok()) << result.status();
    for (int code = 0; code < std::pow(n, channels); ++code) {
      HeadChoice choice(channels);
      double used = 0;
      for (size_t d = 0, rest = code; d < channels; ++d, rest /= n) {
        choice[d] = static_cast<uint8_t>(rest % n);
        used += BitsPerValue(representations[choice[d]], 256) / channels;
      }
      if (used <= result->bits_per_value + 1e-12) {
        ASSERT_GE(HarmOf(costs, one, {choice}), result->harm * (1 - 1e-12));
      }
    }
  }
}

TEST_F(AllocationTest, SensitiveHeadsGetTheBits) {
  const auto representations = Some();
  const auto costs = RandomCosts(random_, 1, 64, representations.size());
  const std::vector<HeadCosts> twins = {costs[0], costs[0]};
  const auto result =
      Allocate(twins, std::vector<double>{1.0, 1000.0}, representations, 1.0, any_band_);
  ASSERT_TRUE(result.ok()) << result.status();
  double bits[2] = {0, 0};
  for (int h = 0; h < 2; ++h) {
    for (const uint8_t r : result->heads[h]) bits[h] += BitsPerValue(representations[r], 256);
  }
  EXPECT_GT(bits[1], bits[0]);
}

TEST_F(AllocationTest, SmallBandsJoinTheNextRicherOne) {
  const auto representations = Some();
  const auto costs = RandomCosts(random_, 6, 64, representations.size());
  const auto result =
      Allocate(costs, std::vector<double>(6, 1.0), representations, 1.5, {.smallest_band = 6});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_LE(result->bits_per_value, 1.5);
  for (const HeadChoice& choice : result->heads) {
    const uint8_t richest = *std::max_element(choice.begin(), choice.end());
    for (uint8_t r = 0; r < richest; ++r) {
      const auto count = std::count(choice.begin(), choice.end(), r);
      EXPECT_TRUE(count == 0 || count >= 6) << count << " channels of " << int{r};
    }
  }
}

TEST_F(AllocationTest, HeadProfilesHoldEveryChannelOnceSpectralFirst) {
  const auto representations = Some();
  auto costs = RandomCosts(random_, 2, 64, representations.size());
  const auto result = Allocate(costs, std::vector<double>(2, 1.0), representations, 2.0, any_band_);
  ASSERT_TRUE(result.ok()) << result.status();
  CodecProfile profile;
  profile.name = "found";
  profile.geometry = {1, 1, 64};
  for (int h = 0; h < 2; ++h) {
    profile.heads.push_back(MakeHeadProfile(costs[h], result->heads[h], representations));
  }
  EXPECT_TRUE(profile.Validate().ok()) << profile.Validate();
}

TEST_F(AllocationTest, SaysWhenTheBudgetIsTooSmall) {
  const auto representations = Some();
  const auto costs = RandomCosts(random_, 1, 16, representations.size());
  EXPECT_EQ(
      Allocate(costs, std::vector<double>{1}, representations, 0.01, any_band_).status().code(),
      absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(Allocate(costs, std::vector<double>{1, 2}, representations, 1, any_band_).ok());
  EXPECT_FALSE(Allocate({}, {}, representations, 1, any_band_).ok());
}

}  // namespace
}  // namespace fourierkv
