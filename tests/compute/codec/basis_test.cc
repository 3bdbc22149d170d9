#include "compute/codec/basis.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <numbers>

namespace fourierkv {
namespace {

double Dot(BasisKind kind, int s, int a, int b) {
  double sum = 0;
  for (int t = 0; t < s; ++t) sum += BasisValue(kind, s, a, t) * BasisValue(kind, s, b, t);
  return sum;
}

TEST(Basis, NamesAreReadBack) {
  for (BasisKind kind : {BasisKind::kDct2, BasisKind::kDft, BasisKind::kMean}) {
    EXPECT_EQ(ParseBasisKind(BasisName(kind)).value(), kind);
  }
  for (const char* name : {"", "DCT2", "dct", "unknown", "dft "}) {
    EXPECT_EQ(ParseBasisKind(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

TEST(Basis, AllColumnsOfDctAndDftAreOrthonormal) {
  const int s = 128;
  for (BasisKind kind : {BasisKind::kDct2, BasisKind::kDft}) {
    for (int a = 0; a < s; ++a) {
      for (int b = 0; b <= a; ++b) {
        ASSERT_NEAR(Dot(kind, s, a, b), a == b ? 1 : 0, 1e-12)
            << BasisName(kind) << " columns " << a << " and " << b;
      }
    }
  }
}

TEST(Basis, TheColumnsThatProfilesUseAreOrthonormalInEverySegmentLength) {
  for (const int s : {256, 512, 1024}) {
    for (BasisKind kind : {BasisKind::kDct2, BasisKind::kDft}) {
      for (int a = 0; a < 64; a += 7) {
        for (int b = 0; b < 64; b += 3) {
          ASSERT_NEAR(Dot(kind, s, a, b), a == b ? 1 : 0, 1e-12);
        }
      }
    }
  }
}

TEST(Basis, FollowsItsFormulas) {
  using std::numbers::pi;
  const double norm = std::sqrt(2.0 / 256);
  EXPECT_DOUBLE_EQ(BasisValue(BasisKind::kMean, 256, 0, 17), 1.0 / 16);
  EXPECT_DOUBLE_EQ(BasisValue(BasisKind::kDct2, 256, 0, 17), 1.0 / 16);
  EXPECT_DOUBLE_EQ(BasisValue(BasisKind::kDft, 256, 0, 17), 1.0 / 16);
  EXPECT_NEAR(BasisValue(BasisKind::kDct2, 256, 3, 17), norm * std::cos(pi * 17.5 * 3 / 256),
              1e-15);
  EXPECT_NEAR(BasisValue(BasisKind::kDft, 256, 3, 17), norm * std::cos(2 * pi * 2 * 17 / 256),
              1e-15);
  EXPECT_NEAR(BasisValue(BasisKind::kDft, 256, 4, 17), norm * std::sin(2 * pi * 2 * 17 / 256),
              1e-15);
  EXPECT_NEAR(BasisValue(BasisKind::kDft, 256, 255, 17), -1.0 / 16, 1e-15);  // (-1)^t / sqrt(S)
}

TEST(Basis, HoldsTheRoundedValuesByColumnAndByRow) {
  for (BasisKind kind : {BasisKind::kDct2, BasisKind::kDft}) {
    for (const int columns : {1, 2, 7, 16}) {
      const Basis basis(kind, 128, columns);
      EXPECT_EQ(basis.kind(), kind);
      EXPECT_EQ(basis.segment_tokens(), 128);
      EXPECT_EQ(basis.columns(), columns);
      for (int m = 0; m < columns; ++m) {
        EXPECT_EQ(reinterpret_cast<uintptr_t>(basis.column(m)) % 64, 0u);
        for (int t = 0; t < 128; ++t) {
          ASSERT_EQ(basis.column(m)[t], static_cast<float>(BasisValue(kind, 128, m, t)));
          ASSERT_EQ(basis.row(t)[m], basis.column(m)[t]);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fourierkv
