// Spectral channels: C = B^T X on tensor cores. X is exact in its own type, and the basis is split
// in two terms of that type; products are exact, and what they leave out of the basis is at most
// 2^-17 of it (bf16), and less still of a sum.

#pragma once

#include <cfloat>
#include <cstdint>

#include "kernels/encode_residents.cuh"
#include "kernels/segment_tile.cuh"

namespace fourierkv::kernels::codec {

// The basis as tensor core operands: 8 columns (a group) by 16 tokens (a step) each, times
// BasisFactor(). Rows 0 to 7 are the first terms, rows 8 to 15 the second.
using BasisOperands = const uint4*;  // [groups][S / 16][32 lanes]

// What column m is multiplied by: entries become 1 where those of a cosine are greatest, which has
// no second term, times 16, which keeps second terms of fp16 normal.
__host__ __device__ __forceinline__ float BasisFactor(int m, int segment_tokens) {
  return 16.0f * sqrtf(static_cast<float>(m == 0 ? segment_tokens : segment_tokens / 2));
}

// Element (m, channel) at m * row + channel * column.
struct CoefficientPlace {
  float* at;
  int row;
  int column;
};

// A group of coefficients of 16 channels, as ProjectChannels; the sums of squares too with kEnergy.
// `row` is where this lane's row of the first four matrices is: tokens 0 to 7, then 8 to 15 of
// channels 0 to 7, then of 8 to 15; `own` the same with the middle two swapped.
template <bool kEnergy, ElementType kType, class Shape>
__device__ __forceinline__ void ProjectGroup(const Shape& shape, uint32_t row, uint32_t own,
                                             int pieces, const uint4* basis, int steps, float unit,
                                             bool add, CoefficientPlace c, float* energy,
                                             Totals* totals) {
  const int lane = threadIdx.x % 32;
  const int r = lane / 4;
  const int column = 2 * (lane % 4);
  const int step_bytes = shape.Row(16);
  float sum[2][4] = {};
  float gram[2][4] = {};  // products of the channels with each other; the diagonal is wanted
#pragma unroll 8
  for (int s = 0; s < steps; ++s) {
    const uint4 terms = __ldg(basis + s * 32);
    const uint32_t a[4] = {terms.x, terms.y, terms.z, terms.w};
    uint32_t x[4];
    LoadMatrices<true>(x, row + s * step_bytes);
    Element<kType>::Mma(sum[0], a, x[0], x[1]);
    Element<kType>::Mma(sum[1], a, x[2], x[3]);
    if constexpr (kEnergy) {
      uint32_t y[4];  // loaded again, since operands stand in neighbouring registers
      LoadMatrices<true>(y, own + s * step_bytes);
      Element<kType>::Mma(gram[0], y, x[0], x[1]);
      Element<kType>::Mma(gram[1], y, x[2], x[3]);
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    if (n >= pieces) break;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float* const to = c.at + r * c.row + (8 * n + column + e) * c.column;
      const float value = (sum[n][e] + sum[n][2 + e]) * unit;
      *to = add ? *to + value : value;
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
                                                BasisOperands basis, int groups, int first,
                                                int steps, bool add, CoefficientPlace c,
                                                float* energy, Totals* totals) {
  const int lane = threadIdx.x % 32;
  const int tokens = shape.tokens();
  const int group = tokens / 16 * 32;    // operands of one
  const int far = pieces == 2 ? 16 : 0;  // bytes to the second 8 channels
  const uint32_t row = tile + shape.Row(lane & 15) + (lane & 16 ? far : 0);
  const uint32_t own = tile + shape.Row((lane & 7) + (lane & 16) / 2) + (lane & 8 ? far : 0);
  const uint4* from = basis + first * 32 + lane;
  const float other = 1.0f / BasisFactor(1, tokens);
  ProjectGroup<true, kType>(shape, row, own, pieces, from, steps,
                            lane < 4 ? 1.0f / BasisFactor(0, tokens) : other, add, c, energy,
                            totals);
  for (int g = 1; g < groups; ++g) {
    c.at += 8 * c.row;
    from += group;
    ProjectGroup<false, kType>(shape, row, own, pieces, from, steps, other, add, c, energy, totals);
  }
}

// Stores the M coefficients of channel j of a band, c[m * row]. Returns the sum of (c - c^)^2, and
// subtracts that of c^2 from `rest`.
__device__ __forceinline__ float StoreCoefficients(const BandView& band, int j, const float* c,
                                                   int row, uint8_t* payload, float* rest) {
  float error = 0;
  if (band.bits == 16) {
    auto* const to = reinterpret_cast<uint16_t*>(payload + band.data_offset) + j;
#pragma unroll 8
    for (int m = 0; m < band.coefficients; ++m) {
      const float value = c[m * row];
      const uint16_t bits = FloatToBf16(value);
      to[m * band.size] = bits;
      const float rounding = value - Bf16ToFloat(bits);
      *rest = fmaf(-value, value, *rest);
      error = fmaf(rounding, rounding, error);
    }
    return error;
  }
  float largest = 0;
#pragma unroll 8
  for (int m = 0; m < band.coefficients; ++m) largest = fmaxf(largest, fabsf(c[m * row]));
  const uint16_t scale_bits = QuotientToBf16Up<127>(largest);
  const float scale = Bf16ToFloat(scale_bits);
  const float reciprocal = scale > 0 ? fminf(1.0f / scale, FLT_MAX) : 0.0f;
  reinterpret_cast<uint16_t*>(payload + band.scale_offset)[j] = scale_bits;
  uint8_t* const to = payload + band.data_offset + j;
#pragma unroll 8
  for (int m = 0; m < band.coefficients; ++m) {
    // Adding it to a small number leaves the nearest integer in the lowest bits.
    constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
    const float value = c[m * row];
    const float rounded = fmaf(value, reciprocal, kRounder);
    to[m * band.size] = static_cast<uint8_t>(__float_as_uint(rounded));
    const float rounding = fmaf(kRounder - rounded, scale, value);
    *rest = fmaf(-value, value, *rest);
    error = fmaf(rounding, rounding, error);
  }
  return error;
}

}  // namespace fourierkv::kernels::codec
