// Rounding of the 16-bit formats, exhaustively: all 65536 values and what lies between them.

#include "compute/base/bfloat16.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace fourierkv {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr uint16_t kSign = 0x8000;
constexpr uint16_t kBf16Infinity = 0x7f80;
constexpr uint16_t kFp16Infinity = 0x7c00;

// What the bits of a floating-point format with `mantissa_bits` and exponent bias `bias` mean.
double Meaning(uint16_t bits, int mantissa_bits, int bias) {
  const int exponent = (bits & 0x7fff) >> mantissa_bits;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int hidden = exponent > 0 ? 1 << mantissa_bits : 0;
  const double magnitude =
      std::ldexp(hidden + mantissa, std::max(exponent, 1) - bias - mantissa_bits);
  return (bits & kSign) != 0 ? -magnitude : magnitude;
}

TEST(Bf16, EveryFiniteValueMeansWhatItsBitsSay) {
  for (uint16_t bits = 0; bits < kBf16Infinity; ++bits) {
    ASSERT_EQ(Bf16ToFloat(bits), Meaning(bits, 7, 127)) << bits;
    ASSERT_EQ(Bf16ToFloat(bits | kSign), Meaning(bits | kSign, 7, 127)) << bits;
  }
}

TEST(Bf16, EveryValueSurvivesTheRoundTrip) {
  for (int bits = 0; bits <= 0xffff; ++bits) {
    const float value = Bf16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(value)))) << bits;
      continue;
    }
    ASSERT_EQ(FloatToBf16(value), bits);
    if (std::isinf(value)) continue;
    ASSERT_EQ(FloatToBf16Up(value), bits);
    ASSERT_EQ(FloatToBf16Down(value), bits);
  }
}

TEST(Bf16, RoundsBetweenNeighboursToTheNearestAndHalfwayToEven) {
  // The neighbour of the largest finite value is infinity, which stands where 2^128 would.
  for (uint16_t low = 0; low < kBf16Infinity; ++low) {
    const uint16_t high = low + 1;
    const float half = std::bit_cast<float>((static_cast<uint32_t>(low) << 16) | 0x8000u);
    const uint16_t even = low % 2 == 0 ? low : high;
    ASSERT_EQ(FloatToBf16(half), even) << low;
    ASSERT_EQ(FloatToBf16(-half), even | kSign) << low;
    ASSERT_EQ(FloatToBf16(std::nextafter(half, 0.0f)), low) << low;
    ASSERT_EQ(FloatToBf16(std::nextafter(half, kInfinity)), high) << low;
  }
}

TEST(Bf16, RoundsUpAndDownBetweenNeighbours) {
  for (uint16_t low = 0; low + 1 < kBf16Infinity; ++low) {
    const uint16_t high = low + 1;
    for (const float between :
         {std::nextafter(Bf16ToFloat(low), kInfinity), std::nextafter(Bf16ToFloat(high), 0.0f)}) {
      ASSERT_EQ(FloatToBf16Up(between), high) << low;
      ASSERT_EQ(FloatToBf16Down(between), low) << low;
      ASSERT_EQ(FloatToBf16Up(-between), low | kSign) << low;
      ASSERT_EQ(FloatToBf16Down(-between), high | kSign) << low;
    }
  }
}

TEST(Bf16, NanStaysNanWhateverItsPayload) {
  for (const uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7f808000u}) {
    EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(std::bit_cast<float>(bits))))) << bits;
  }
}

TEST(Fp16, EveryFiniteValueMeansWhatItsBitsSay) {
  for (uint16_t bits = 0; bits < kFp16Infinity; ++bits) {
    ASSERT_EQ(Fp16ToFloat(bits), Meaning(bits, 10, 15)) << bits;
    ASSERT_EQ(Fp16ToFloat(bits | kSign), Meaning(bits | kSign, 10, 15)) << bits;
  }
  EXPECT_EQ(Fp16ToFloat(kFp16Infinity), kInfinity);
  EXPECT_EQ(Fp16ToFloat(kFp16Infinity | kSign), -kInfinity);
}

TEST(Fp16, EveryValueSurvivesTheRoundTrip) {
  for (int bits = 0; bits <= 0xffff; ++bits) {
    const float value = Fp16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(Fp16ToFloat(FloatToFp16(value)))) << bits;
    } else {
      ASSERT_EQ(FloatToFp16(value), bits);
    }
  }
}

TEST(Fp16, RoundsBetweenNeighboursToTheNearestAndHalfwayToEven) {
  for (uint16_t low = 0; low < kFp16Infinity; ++low) {
    const uint16_t high = low + 1;
    // Halfway values of fp16 are floats. Beyond the largest finite value stands 2^16.
    const double above = high == kFp16Infinity ? 65536.0 : Fp16ToFloat(high);
    const float half = static_cast<float>((Fp16ToFloat(low) + above) / 2);
    const uint16_t even = low % 2 == 0 ? low : high;
    ASSERT_EQ(FloatToFp16(half), even) << low;
    ASSERT_EQ(FloatToFp16(-half), even | kSign) << low;
    ASSERT_EQ(FloatToFp16(std::nextafter(half, 0.0f)), low) << low;
    ASSERT_EQ(FloatToFp16(std::nextafter(half, kInfinity)), high) << low;
  }
}

TEST(Fp16, OverflowGivesInfinityAndUnderflowZero) {
  EXPECT_EQ(FloatToFp16(1e30f), kFp16Infinity);
  EXPECT_EQ(FloatToFp16(-kInfinity), kFp16Infinity | kSign);
  EXPECT_EQ(FloatToFp16(1e-30f), 0);
  EXPECT_EQ(FloatToFp16(-1e-30f), kSign);
}

TEST(KvConversion, FollowsTheDtype) {
  EXPECT_EQ(FloatToKv(1.0f, KvDtype::kBf16), 0x3f80);
  EXPECT_EQ(FloatToKv(1.0f, KvDtype::kFp16), 0x3c00);
  EXPECT_EQ(KvToFloat(0x3f80, KvDtype::kBf16), 1.0f);
  EXPECT_EQ(KvToFloat(0x3c00, KvDtype::kFp16), 1.0f);
}

}  // namespace
}  // namespace fourierkv
