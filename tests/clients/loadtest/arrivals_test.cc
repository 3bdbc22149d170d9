#include "clients/loadtest/arrivals.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"

namespace fourierkv::loadtest {
namespace {

TEST(ArrivalsTest, ConstantArrivalsAreExactlyOnTheirGrid) {
  Arrivals thousand(ArrivalProcess::kConstant, 1000, 1);
  for (int64_t k = 0; k < 100000; ++k) ASSERT_EQ(thousand.Next(), k * 1'000'000);
  // No rounding error adds up where the gap is no whole number of nanoseconds.
  Arrivals third(ArrivalProcess::kConstant, 3, 1);
  int64_t last = 0;
  for (int64_t k = 0; k <= 3'000'000; ++k) last = third.Next();
  EXPECT_NEAR(last, 1e15, 1);
}

// Means and variances within four standard deviations: 1 in 16,000 seeds would fail, so seeds are
// fixed.
TEST(ArrivalsTest, PoissonGapsAreExponential) {
  for (const uint64_t seed : {1, 2, 3, 4, 5}) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    constexpr int kCount = 100000;
    constexpr double kMean = 1e9 / 250;
    Arrivals arrivals(ArrivalProcess::kPoisson, 250, seed);
    double sum = 0;
    double squares = 0;
    double beyond = 0;
    int64_t before = 0;
    for (int k = 0; k < kCount; ++k) {
      const int64_t at = arrivals.Next();
      ASSERT_GE(at, before);
      const double gap = static_cast<double>(at - before) / kMean;
      before = at;
      sum += gap;
      squares += gap * gap;
      beyond += gap > 3 ? 1 : 0;
    }
    const double mean = sum / kCount;
    EXPECT_NEAR(mean, 1, 4 / std::sqrt(kCount));
    // The variance of an exponential's sample variance is 8 / n.
    EXPECT_NEAR(squares / kCount - mean * mean, 1, 4 * std::sqrt(8.0 / kCount));
    const double p = std::exp(-3);
    EXPECT_NEAR(beyond / kCount, p, 4 * std::sqrt(p * (1 - p) / kCount));
  }
}

TEST(ArrivalsTest, PoissonCountsInDisjointIntervalsHaveTheirMeanAsVariance) {
  Arrivals arrivals(ArrivalProcess::kPoisson, 1000, 7);
  constexpr int kIntervals = 2000;  // of 10 ms: 10 arrivals each
  std::vector<int> counts(kIntervals);
  for (int64_t at = arrivals.Next(); at < kIntervals * int64_t{10'000'000}; at = arrivals.Next()) {
    ++counts[at / 10'000'000];
  }
  double sum = 0;
  double squares = 0;
  for (const int c : counts) {
    sum += c;
    squares += static_cast<double>(c) * c;
  }
  const double mean = sum / kIntervals;
  EXPECT_NEAR(mean, 10, 4 * std::sqrt(10.0 / kIntervals));
  EXPECT_NEAR(squares / kIntervals - mean * mean, 10, 4 * 10 * std::sqrt(2.1 / kIntervals));
}

TEST(ArrivalsTest, ASeedDecidesTheSchedule) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  Arrivals a(ArrivalProcess::kPoisson, 123.4, seed);
  Arrivals same(ArrivalProcess::kPoisson, 123.4, seed);
  Arrivals other(ArrivalProcess::kPoisson, 123.4, seed + 1);
  int differ = 0;
  for (int k = 0; k < 1000; ++k) {
    const int64_t at = a.Next();
    ASSERT_EQ(at, same.Next());
    differ += at != other.Next() ? 1 : 0;
  }
  EXPECT_GT(differ, 900);
}

}  // namespace
}  // namespace fourierkv::loadtest
