#include "clients/loadtest/latency_histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"

namespace fourierkv::loadtest {
namespace {

constexpr double kRelative = 1.0 / 256;

TEST(LatencyHistogramTest, QuantilesAreWithinOnePart256OfTheValueOfThatRank) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 rng(seed);
  for (const double spread : {0.1, 1.0, 5.0}) {  // of lognormal latencies around 1 ms
    for (const size_t count : {1, 2, 3, 7, 100, 1001, 20000}) {
      LatencyHistogram histogram;
      std::lognormal_distribution<double> latency(std::log(1e6), spread);
      std::vector<int64_t> values(count);
      for (int64_t& v : values) {
        v = std::min(static_cast<int64_t>(latency(rng)), LatencyHistogram::kLargest);
        histogram.Record(v);
      }
      std::sort(values.begin(), values.end());
      for (const double q : {0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1.0}) {
        const auto rank = static_cast<size_t>(std::ceil(q * static_cast<double>(count)));
        const auto right = static_cast<double>(values[std::max<size_t>(rank, 1) - 1]);
        EXPECT_NEAR(static_cast<double>(histogram.Quantile(q)), right, right * kRelative)
            << q << " of " << count;
      }
      EXPECT_EQ(histogram.min(), values.front());
      EXPECT_EQ(histogram.max(), values.back());
      EXPECT_EQ(histogram.count(), count);
    }
  }
}

TEST(LatencyHistogramTest, EveryValueIsWithinItsBucket) {
  std::vector<int64_t> values;
  for (int bits = 0; bits < 42; ++bits) {
    for (const int64_t around : {-1, 0, 1}) values.push_back((int64_t{1} << bits) + around);
  }
  values.push_back(LatencyHistogram::kLargest);
  for (const int64_t value : values) {
    LatencyHistogram histogram;
    histogram.Record(value);
    int visited = 0;
    histogram.ForEach([&](int64_t lowest, int64_t highest, uint64_t count) {
      ++visited;
      EXPECT_EQ(count, 1);
      EXPECT_LE(lowest, value);
      EXPECT_GE(highest, value);
      EXPECT_LE(static_cast<double>(highest - lowest), static_cast<double>(value) / 128);
    });
    EXPECT_EQ(visited, 1);
    EXPECT_EQ(histogram.Quantile(0.5), value) << "one value is known exactly";
  }
}

TEST(LatencyHistogramTest, BucketsDoNotOverlapAndHoldEverything) {
  std::mt19937_64 rng(3);
  LatencyHistogram histogram;
  for (int i = 0; i < 50000; ++i) histogram.Record(static_cast<int64_t>(rng() >> (22 + i % 42)));
  int64_t before = -1;
  uint64_t sum = 0;
  histogram.ForEach([&](int64_t lowest, int64_t highest, uint64_t count) {
    EXPECT_GT(lowest, before);
    EXPECT_GE(highest, lowest);
    before = highest;
    sum += count;
  });
  EXPECT_EQ(sum, 50000);
}

TEST(LatencyHistogramTest, ValuesOutOfRangeCountAsTheNearest) {
  LatencyHistogram histogram;
  histogram.Record(-5);
  histogram.Record(INT64_MAX);
  EXPECT_EQ(histogram.min(), 0);
  EXPECT_EQ(histogram.max(), LatencyHistogram::kLargest);
  EXPECT_EQ(histogram.Quantile(0), 0);
}

TEST(LatencyHistogramTest, AddingIsAsRecordingAll) {
  std::mt19937 rng(4);
  LatencyHistogram a;
  LatencyHistogram b;
  LatencyHistogram both;
  for (int i = 0; i < 1000; ++i) {
    const auto value = static_cast<int64_t>(rng());
    (i % 3 == 0 ? a : b).Record(value);
    both.Record(value);
  }
  a.Add(b);
  for (const double q : {0.0, 0.5, 0.99, 1.0}) EXPECT_EQ(a.Quantile(q), both.Quantile(q));
  EXPECT_EQ(a.count(), both.count());
  EXPECT_EQ(a.min(), both.min());
  EXPECT_EQ(a.max(), both.max());
  EXPECT_NEAR(a.mean(), both.mean(), 1e-9 * both.mean());
}

TEST(LatencyHistogramTest, WithoutValuesEverythingIsZero) {
  const LatencyHistogram histogram;
  EXPECT_EQ(histogram.Quantile(0.99), 0);
  EXPECT_EQ(histogram.min(), 0);
  EXPECT_EQ(histogram.max(), 0);
  EXPECT_EQ(histogram.mean(), 0);
}

}  // namespace
}  // namespace fourierkv::loadtest
