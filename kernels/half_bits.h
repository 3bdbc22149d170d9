// IEEE binary16 on the host, without CUDA headers.

#pragma once

#include <cmath>
#include <cstdint>

namespace fourierkv::kernels {

// `value` as binary16, to nearest even. Requires |value| < 65520.
inline uint16_t HalfBits(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude == 0) return sign;
  int exponent = 0;
  std::frexp(magnitude, &exponent);            // magnitude = f * 2^exponent, f in [0.5, 1)
  exponent = exponent < -13 ? -13 : exponent;  // subnormals share the least exponent
  const auto integer = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));
  // integer is at most 2^11; adding instead of or-ing carries into the exponent.
  return static_cast<uint16_t>(sign | (((exponent + 13) << 10) + integer));
}

}  // namespace fourierkv::kernels
