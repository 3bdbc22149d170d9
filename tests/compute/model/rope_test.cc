#include "compute/model/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace fourierkv {
namespace {

ModelConfig Config() {
  ModelConfig config;
  config.head_dim = 8;
  config.rope_theta = 10000;
  return config;
}

TEST(Rope, RotatesPairsByPositionTimesFrequency) {
  const Rope rope(Config());
  const Rope::Table table = rope.MakeTable(/*first=*/1000, /*n=*/3);
  std::vector<float> x = {1, 0, 0, 0, 0, 0, 0, 1};
  Rope::Rotate(1, 8, table.cos.data() + 2 * 4, table.sin.data() + 2 * 4, x.data());
  // Channel 0 pairs with 4 at frequency 1; channel 3 with 7 at 10000^(-6/8) = 1e-3.
  EXPECT_NEAR(x[0], std::cos(1002.0), 1e-6);
  EXPECT_NEAR(x[4], std::sin(1002.0), 1e-6);
  EXPECT_NEAR(x[3], -std::sin(1.002), 1e-6);
  EXPECT_NEAR(x[7], std::cos(1.002), 1e-6);
  EXPECT_EQ(x[1], 0);
}

TEST(Rope, Llama3StretchesLongWavelengthsOnly) {
  ModelConfig config = Config();
  config.rope_theta = 500000;
  config.head_dim = 128;
  const Rope plain(config);
  config.llama3_rope = true;
  config.rope_scaling = {8, 1, 4, 8192};
  const Rope scaled(config);
  for (int d = 0; d < 64; ++d) {
    const double before = plain.frequencies()[d], after = scaled.frequencies()[d];
    const double wavelength = 2 * std::numbers::pi / before;
    if (wavelength < 8192.0 / 4) {
      EXPECT_EQ(after, before);
    } else if (wavelength > 8192.0) {
      EXPECT_EQ(after, before / 8);
    } else {
      EXPECT_LT(after, before);
      EXPECT_GT(after, before / 8);
    }
  }
}

}  // namespace
}  // namespace fourierkv
