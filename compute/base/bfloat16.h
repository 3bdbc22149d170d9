// Scalar conversions between float and the two 16-bit floating point formats of KV tensors.
// Vectorised code has its own; these define the rounding that it must reproduce.

#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "compute/base/geometry.h"

namespace fourierkv {

inline float Bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Round to nearest even. NaN stays NaN.
inline uint16_t FloatToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The smallest bf16 >= value, and the largest bf16 <= value, for finite values.
inline uint16_t FloatToBf16Up(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const bool inexact = (bits & 0xffffu) != 0;
  const bool negative = (bits >> 31) != 0;
  return static_cast<uint16_t>((bits >> 16) + (inexact && !negative ? 1u : 0u));
}
inline uint16_t FloatToBf16Down(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const bool inexact = (bits & 0xffffu) != 0;
  const bool negative = (bits >> 31) != 0;
  return static_cast<uint16_t>((bits >> 16) + (inexact && negative ? 1u : 0u));
}

float Fp16ToFloat(uint16_t bits);
// Round to nearest even; overflow gives infinity.
uint16_t FloatToFp16(float value);

inline float KvToFloat(uint16_t bits, KvDtype dtype) {
  return dtype == KvDtype::kBf16 ? Bf16ToFloat(bits) : Fp16ToFloat(bits);
}
inline uint16_t FloatToKv(float value, KvDtype dtype) {
  return dtype == KvDtype::kBf16 ? FloatToBf16(value) : FloatToFp16(value);
}

}  // namespace fourierkv
