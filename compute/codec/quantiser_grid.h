// Which grids an encoder may choose from for a resident channel's integers.

#pragma once

#include <span>

namespace fourierkv {

// A grid of 2^bits values is laid evenly over the channel's range [min, max], less trim * (max -
// min) at both ends; values beyond it take its first or last value. The encoder takes the first
// trim of least squared error. With few values a narrower, finer grid is worth clipping outliers
// for: the squared error falls by half at 2 bits and by a third at 3; at 4 bits it is hardly worth
// the time.
inline std::span<const double> GridTrims(int bits) {
  static constexpr double kTwoBits[] = {0, 0.1, 0.2, 0.3};
  static constexpr double kThreeBits[] = {0, 0.05, 0.1, 0.175};
  static constexpr double kNone[] = {0};
  if (bits == 2) return kTwoBits;
  if (bits == 3) return kThreeBits;
  return kNone;
}

}  // namespace fourierkv
