// Products with the basis of a sequence against the basis itself, in float64.

#include "compute/sequence/sequence_basis.h"

#include <gtest/gtest.h>

#include "compute/codec/sequence_reference.h"
#include "tests/compute/sequence/sequence_test_util.h"

namespace fourierkv {
namespace {

struct Shape {
  int64_t period;
  int frequencies;
};

class BasisProducts : public ::testing::TestWithParam<Shape> {
 protected:
  BasisProducts() : seed_(FreshSeed()), random_(seed_) {}

  double Value(int state, int64_t t) const {
    return reference::SequenceBasisValue({.frequencies = GetParam().frequencies}, GetParam().period,
                                         state, t);
  }

  std::vector<float> Normal(int64_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> values(n);
    for (float& value : values) value = normal(random_);
    return values;
  }

  const uint64_t seed_;
  std::mt19937_64 random_;
};

TEST_P(BasisProducts, AgreeWithTheBasisOnTilesAnywhere) {
  SCOPED_TRACE(seed_);
  const auto [period, frequencies] = GetParam();
  const SequenceBasis basis(period, frequencies);
  const int64_t all_tiles = basis.TilesFor(period);
  const int rows = 3;
  const int tiles = static_cast<int>(std::min<int64_t>(2, all_tiles));
  const int64_t first_tile = all_tiles - tiles;  // the largest angles
  const int64_t span = int64_t{tiles} * basis.tile_tokens();
  const int64_t first = first_tile * basis.tile_tokens();
  const std::vector<float> c = Normal(rows * basis.states()), x = Normal(rows * span);

  SequenceBasis::Scratch scratch;
  std::vector<float> out(rows * span), projected = c;
  basis.Evaluate(c.data(), rows, first_tile, tiles, out.data(), scratch);
  basis.Project(x.data(), rows, first_tile, tiles, projected.data(), scratch);

  std::vector<double> expected_out(rows * span, 0.0), expected_c(c.begin(), c.end());
  for (int64_t t = 0; t < span; ++t) {
    for (int s = 0; s < basis.states(); ++s) {
      const double value = Value(s, first + t);
      for (int i = 0; i < rows; ++i) {
        expected_out[i * span + t] += value * c[i * basis.states() + s];
        expected_c[i * basis.states() + s] += value * x[i * span + t];
      }
    }
  }
  EXPECT_LT(RelativeDistance(out, expected_out), 3e-6);
  EXPECT_LT(RelativeDistance(projected, expected_c), 3e-6);
}

TEST_P(BasisProducts, RowsAreThoseOfTheBasis) {
  const auto [period, frequencies] = GetParam();
  const SequenceBasis basis(period, frequencies);
  for (int64_t t : {int64_t{0}, period / 3, period - 1}) {
    std::vector<float> row(basis.states());
    basis.Row(t, row.data());
    for (int s = 0; s < basis.states(); ++s)
      EXPECT_NEAR(row[s], Value(s, t), 1e-7) << t << " " << s;
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, BasisProducts,
                         ::testing::Values(Shape{2, 1}, Shape{65, 1}, Shape{11, 5}, Shape{100, 7},
                                           Shape{1031, 512}, Shape{2003, 100}, Shape{4001, 512},
                                           Shape{9973, 512}, Shape{32771, 512}, Shape{131071, 64}),
                         [](const auto& info) {
                           return "P" + std::to_string(info.param.period) + "F" +
                                  std::to_string(info.param.frequencies);
                         });

TEST(SequenceBasis, NeedsAFractionOfTheWorkWhereThePeriodIsLong) {
  EXPECT_LT(SequenceBasis(32768, 512).WorkPerToken(), 1024 / 5);
  EXPECT_EQ(SequenceBasis(1100, 512).WorkPerToken(), 1024);
}

}  // namespace
}  // namespace fourierkv
