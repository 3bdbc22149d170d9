#include "compute/model/dense_ops.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace fourierkv {
namespace {

class DenseOpsTest : public testing::TestWithParam<int> {
 protected:
  DenseOpsTest() : random_(seed_), trace_(__FILE__, __LINE__, "seed " + std::to_string(seed_)) {}

  std::vector<float> Random(int64_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> x(n);
    for (float& value : x) value = normal(random_);
    return x;
  }

  const unsigned seed_ = std::random_device()();
  std::mt19937 random_;
  testing::ScopedTrace trace_;
  ThreadPool pool_{GetParam()};
};

TEST_P(DenseOpsTest, MatMulEqualsItsDefinition) {
  // Small work is done inline; few rows split columns; many rows are split.
  for (const auto& [n, in, out] :
       {std::tuple{1, 7, 5}, {1, 700, 901}, {3, 520, 333}, {17, 129, 257}, {150, 65, 71}}) {
    const auto x = Random(n * in), w = Random(out * in);
    auto y = Random(n * out);
    const auto before = y;
    for (bool accumulate : {true, false}) {
      if (!accumulate) y = before;
      MatMul(pool_, x.data(), n, in, w.data(), out, y.data(), accumulate);
      for (int i = 0; i < n; ++i) {
        for (int j = 0; j < out; ++j) {
          double sum = accumulate ? before[i * out + j] : 0;
          for (int k = 0; k < in; ++k) sum += static_cast<double>(x[i * in + k]) * w[j * in + k];
          ASSERT_NEAR(y[i * out + j], sum, 1e-3) << n << "x" << in << "x" << out;
        }
      }
    }
  }
}

TEST_P(DenseOpsTest, RmsNormScalesToUnitMeanSquare) {
  const int n = 37, size = 50;
  const auto x = Random(n * size), weight = Random(size);
  std::vector<float> y(n * size);
  RmsNorm(pool_, x.data(), n, size, weight.data(), 1e-5, y.data());
  for (int i = 0; i < n; ++i) {
    double sum = 0;
    for (int d = 0; d < size; ++d) sum += static_cast<double>(x[i * size + d]) * x[i * size + d];
    for (int d = 0; d < size; ++d) {
      EXPECT_NEAR(y[i * size + d], x[i * size + d] / std::sqrt(sum / size + 1e-5) * weight[d],
                  1e-5);
    }
  }
}

TEST_P(DenseOpsTest, SiluMulIsFiniteEverywhere) {
  std::vector<float> gate = {0, 1, -1, 200, -200, 1e30f, -1e30f};
  const std::vector<float> up = {5, 2, 2, 1, 1, 1, 1};
  SiluMul(pool_, 1, gate.size(), up.data(), gate.data());
  EXPECT_FLOAT_EQ(gate[1], 2 / (1 + std::exp(-1.0f)));
  EXPECT_FLOAT_EQ(gate[2], -2 / (1 + std::exp(1.0f)));
  EXPECT_FLOAT_EQ(gate[3], 200);
  for (float value : gate) EXPECT_TRUE(std::isfinite(value));
}

TEST_P(DenseOpsTest, ForRowsCoversEveryRowOnce) {
  for (int64_t rows : {0, 1, 16, 17, 1000}) {
    std::vector<int> seen(rows);
    ForRows(pool_, rows, [&](int64_t first, int64_t count) {
      for (int64_t i = first; i < first + count; ++i) ++seen[i];
    });
    EXPECT_EQ(seen, std::vector<int>(rows, 1));
  }
}

INSTANTIATE_TEST_SUITE_P(Threads, DenseOpsTest, testing::Values(1, 2, 5));

}  // namespace
}  // namespace fourierkv
