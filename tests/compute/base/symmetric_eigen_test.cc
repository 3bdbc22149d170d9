#include "compute/base/symmetric_eigen.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fourierkv {
namespace {

TEST(SymmetricEigenTest, VectorsRebuildTheMatrixAndAreOrthonormalInDecreasingOrder) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  for (const int n : {1, 2, 3, 17, 64, 129}) {
    std::vector<double> a(n * n);
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) a[i * n + j] = a[j * n + i] = normal(random);
    }
    const auto eigen = EigenOfSymmetric(a, n);
    ASSERT_TRUE(eigen.ok()) << eigen.status();
    for (int j = 1; j < n; ++j) EXPECT_GE(eigen->values[j - 1], eigen->values[j]);
    const std::vector<double>& u = eigen->vectors;
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        double rebuilt = 0, product = 0;
        for (int k = 0; k < n; ++k) {
          rebuilt += u[i * n + k] * eigen->values[k] * u[j * n + k];
          product += u[k * n + i] * u[k * n + j];
        }
        EXPECT_NEAR(rebuilt, a[i * n + j], 1e-9);
        EXPECT_NEAR(product, i == j ? 1 : 0, 1e-9);
      }
    }
  }
}

TEST(SymmetricEigenTest, OnlyTheLowerTriangleIsRead) {
  const auto eigen = EigenOfSymmetric(std::vector<double>{2, 99, 1, 2}, 2);
  ASSERT_TRUE(eigen.ok()) << eigen.status();
  EXPECT_THAT(eigen->values,
              testing::ElementsAre(testing::DoubleNear(3, 1e-12), testing::DoubleNear(1, 1e-12)));
}

TEST(SymmetricEigenTest, RefusesWhatIsNoMatrixOfNumbers) {
  EXPECT_FALSE(EigenOfSymmetric(std::vector<double>{1, 2, 3}, 2).ok());
  EXPECT_FALSE(EigenOfSymmetric({}, 0).ok());
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(EigenOfSymmetric(std::vector<double>{1, 0, nan, 1}, 2).ok());
}

}  // namespace
}  // namespace fourierkv
