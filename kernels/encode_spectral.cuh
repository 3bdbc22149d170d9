// Spectral channels: C = B^T X on tensor cores. X is exact in its own type, and the basis is split
// in three terms of that type; products are exact, so that C is as good as a sum in float.

#pragma once

#include <cfloat>
#include <cstdint>

#include "kernels/encode_residents.cuh"
#include "kernels/segment_tile.cuh"

namespace fourierkv::kernels::codec {

// The basis as tensor core operands: 8 columns (a group) by 16 tokens (a step) each, times
// kBasisScale, which keeps fp16 terms normal. Rows 0 to 7 of `leading` are the first terms, rows 8
// to 15 the second; rows 0 to 7 of `trailing` the third.
struct BasisOperands {
  const uint4* leading;  // [groups][S / 16][32 lanes]
  const uint2* trailing;
};
constexpr float kBasisScale = 256.0f;

// Element (m, channel) at m * row + channel * column.
struct CoefficientPlace {
  float* at;
  int row;
  int column;
};

// A group of coefficients of 16 channels, as ProjectChannels; the sums of squares too with kEnergy.
// Without branches in its loop, so that loads of several steps are under way at once.
template <bool kEnergy, ElementType kType, class Shape>
__device__ __forceinline__ void ProjectGroup(const Shape& shape, uint32_t row, int pieces,
                                             const uint4* leading_terms,
                                             const uint2* trailing_terms, int steps, bool add,
                                             CoefficientPlace c, float* energy, Totals* totals) {
  const int lane = threadIdx.x % 32;
  const int r = lane / 4;
  const int column = 2 * (lane % 4);
  const int step_bytes = shape.Row(16);
  float leading[2][4] = {};
  float trailing[2][4] = {};
  float gram[2][4] = {};  // products of the channels with each other; the diagonal is wanted
#pragma unroll 4
  for (int s = 0; s < steps; ++s) {
    const uint4 l = __ldg(leading_terms + s * 32);
    const uint2 t = __ldg(trailing_terms + s * 32);
    uint32_t x[4];
    LoadMatrices<true>(x, row + s * step_bytes);
    const uint32_t a[4] = {l.x, l.y, l.z, l.w};
    const uint32_t b[4] = {t.x, 0, t.y, 0};
    Element<kType>::Mma(leading[0], a, x[0], x[1]);
    Element<kType>::Mma(leading[1], a, x[2], x[3]);
    Element<kType>::Mma(trailing[0], b, x[0], x[1]);
    Element<kType>::Mma(trailing[1], b, x[2], x[3]);
    if constexpr (kEnergy) {
      const uint32_t own[4] = {x[0], x[2], x[1], x[3]};
      Element<kType>::Mma(gram[0], own, x[0], x[1]);
      Element<kType>::Mma(gram[1], own, x[2], x[3]);
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    if (n >= pieces) break;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float* const to = c.at + r * c.row + (8 * n + column + e) * c.column;
      const float sum = (leading[n][e] + (leading[n][2 + e] + trailing[n][e])) / kBasisScale;
      *to = add ? *to + sum : sum;
    }
    if (kEnergy && lane % 4 == lane / 8) {  // the lanes that hold the diagonal
      const float square = (r & 1) != 0 ? gram[n][2 * n + 1] : gram[n][2 * n];
      float* const to = energy + 8 * n + r;
      *to = add ? *to + square : square;
      totals->Judge(square);
    }
  }
}

// For 16 channels from `tile` on, of which only the first `pieces` * 8 (8 or 16) exist:
// coefficients of all tokens, and the sum of squares of each channel. `steps` of 16 tokens from
// step `first` on of the segment; with `add`, on top of what is there. By one warp.
template <ElementType kType, class Shape>
__device__ __forceinline__ void ProjectChannels(const Shape& shape, uint32_t tile, int pieces,
                                                const BasisOperands& basis, int groups, int first,
                                                int steps, bool add, CoefficientPlace c,
                                                float* energy, Totals* totals) {
  const int lane = threadIdx.x % 32;
  const int group = shape.tokens() / 16 * 32;  // operands of one
  // Matrices: tokens 0 to 7 and 8 to 15 of a step by channels 0 to 7, then by channels 8 to 15.
  const int piece = pieces == 2 ? lane >> 4 : 0;
  const uint32_t row = tile + shape.Row((lane & 8) + (lane & 7)) + 16 * piece;
  const uint4* const leading = basis.leading + first * 32 + lane;
  const uint2* const trailing = basis.trailing + first * 32 + lane;
  ProjectGroup<true, kType>(shape, row, pieces, leading, trailing, steps, add, c, energy, totals);
  for (int g = 1; g < groups; ++g) {
    c.at += 8 * c.row;
    ProjectGroup<false, kType>(shape, row, pieces, leading + g * group, trailing + g * group, steps,
                               add, c, energy, totals);
  }
}

// Stores the M coefficients of channel j of a band, c[m * row]. Returns the sum of (c - c^)^2, and
// in `energy` that of c^2.
__device__ __forceinline__ double StoreCoefficients(const BandView& band, int j, const float* c,
                                                    int row, uint8_t* payload, double* energy) {
  double squares = 0;
  float error = 0;
  if (band.bits == 16) {
    auto* const to = reinterpret_cast<uint16_t*>(payload + band.data_offset) + j;
#pragma unroll 8
    for (int m = 0; m < band.coefficients; ++m) {
      const float value = c[m * row];
      const uint16_t bits = FloatToBf16(value);
      to[m * band.size] = bits;
      const float rounding = value - Bf16ToFloat(bits);
      squares += static_cast<double>(value) * value;
      error = fmaf(rounding, rounding, error);
    }
    *energy = squares;
    return error;
  }
  float largest = 0;
#pragma unroll 8
  for (int m = 0; m < band.coefficients; ++m) {
    const float value = c[m * row];
    largest = fmaxf(largest, fabsf(value));
    squares += static_cast<double>(value) * value;
  }
  const uint16_t scale_bits = QuotientToBf16Up<127>(largest);
  const float scale = Bf16ToFloat(scale_bits);
  const float reciprocal = scale > 0 ? fminf(1.0f / scale, FLT_MAX) : 0.0f;
  reinterpret_cast<uint16_t*>(payload + band.scale_offset)[j] = scale_bits;
  auto* const to = reinterpret_cast<int8_t*>(payload + band.data_offset) + j;
#pragma unroll 8
  for (int m = 0; m < band.coefficients; ++m) {
    const float value = c[m * row];
    // value / scale, correctly rounded.
    float quotient = value * reciprocal;
    quotient = fmaf(fmaf(-quotient, scale, value), reciprocal, quotient);
    const float q = fminf(fmaxf(rintf(quotient), -127.0f), 127.0f);
    to[m * band.size] = static_cast<int8_t>(q);
    const float rounding = fmaf(-q, scale, value);
    error = fmaf(rounding, rounding, error);
  }
  *energy = squares;
  return error;
}

}  // namespace fourierkv::kernels::codec
