// Spectral channels back: X^ = B C on tensor cores. Coefficients are exact in bf16, as integers or
// as they are; the basis is split in three terms of bf16.

#pragma once

#include <cstdint>

#include "kernels/segment_tile.cuh"
#include "kernels/slice_bands.cuh"

namespace fourierkv::kernels::codec {

// Coefficients of a slice's spectral channels in shared memory, 0 beyond a band's M. What stands
// for resident channels may be anything: products with it are in these channels only.
struct SliceCoefficients {
  uint16_t* c;   // [channels][row]: bf16 of integers or of coefficients
  int row;       // a multiple of 8
  float* scale;  // [channels]: of integers; 1 for coefficients
};

// By the whole block; what it wrote counts after the caller's barrier.
__device__ __forceinline__ void LoadCoefficients(const SliceBands& slice, const uint16_t* ids,
                                                 const uint8_t* payload,
                                                 const SliceCoefficients& to) {
  for (int b = 0; b < slice.count; ++b) {
    const SliceBand& band = slice.bands[b];
    const BandView& view = band.view;
    if (view.coefficients == 0) continue;
    const int width = band.end - band.begin;
    // A thread takes 8 coefficients of a channel.
    for (int i = threadIdx.x; i < width * slice.groups; i += kThreads) {
      const int m = i / width * 8;
      const int j = i % width;
      const int channel = ids[band.first + j];
      const int64_t at = static_cast<int64_t>(m) * view.size + band.begin + j;
      uint32_t c[8] = {};
      float scale = 1;
      if (view.bits == 16) {
        const auto* from = reinterpret_cast<const uint16_t*>(payload + view.data_offset) + at;
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          if (m + e < view.coefficients) c[e] = __ldg(from + e * view.size);
        }
      } else {
        const auto* from = reinterpret_cast<const int8_t*>(payload + view.data_offset) + at;
        const auto* scales = reinterpret_cast<const uint16_t*>(payload + view.scale_offset);
        scale = Bf16ToFloat(__ldg(scales + band.begin + j));
        int codes[8];
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          codes[e] = m + e < view.coefficients ? __ldg(from + e * view.size) : 0;
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) c[e] = FloatToBf16(static_cast<float>(codes[e]));
      }
      *reinterpret_cast<uint4*>(to.c + channel * to.row + m) = {
          c[0] | c[1] << 16, c[2] | c[3] << 16, c[4] | c[5] << 16, c[6] | c[7] << 16};
      if (m == 0) to.scale[channel] = scale;
    }
  }
}

// Rows r and r + 8 and columns 2 c, 2 c + 1 of 16 tokens by a group of 8 columns of the basis.
__device__ __forceinline__ void LoadBasis(const PartView& part, int token, int group,
                                          SplitPair<ElementType::kBf16> (&rows)[2]) {
  const int lane = threadIdx.x % 32;
  const int m = 8 * group + 2 * (lane % 4);
  const float* const even = part.basis + m * part.segment_tokens + token + lane / 4;
  const float* const odd = even + part.segment_tokens;
  float2 near = {0, 0};
  float2 far = {0, 0};
  if (m < part.columns) {
    near.x = __ldg(even);
    far.x = __ldg(even + 8);
  }
  if (m + 1 < part.columns) {
    near.y = __ldg(odd);
    far.y = __ldg(odd + 8);
  }
  rows[0] = {near.x, near.y};
  rows[1] = {far.x, far.y};
}

constexpr int kTilesAtOnce = 8;  // of 8 channels

// Tokens [token, token + 16) of channels [first, first + 64) of a slice to a tile: with kAll of all
// of them, which must exist; else as far as bits of `spectral` say that a group of 8 has any that
// is spectral. By one warp.
template <bool kAll, ElementType kType, class Shape>
__device__ __forceinline__ void DecodeSpectral(const Shape& shape, const PartView& part,
                                               const SliceCoefficients& from, int groups,
                                               uint32_t spectral, int token, int first,
                                               uint8_t* tile) {
  const int lane = threadIdx.x % 32;
  float sum[kTilesAtOnce][4] = {};
  const uint16_t* const c = from.c + (first + lane / 4) * from.row + 2 * (lane % 4);
  for (int g = 0; g < groups; ++g) {
    SplitPair<ElementType::kBf16> basis[2] = {{0, 0}, {0, 0}};
    LoadBasis(part, token, g, basis);
#pragma unroll
    for (int n = 0; n < kTilesAtOnce; ++n) {
      if (!kAll && (spectral >> n & 1u) == 0) continue;
      // Both halves of the inner dimension are the same coefficients, with other terms of the
      // basis.
      const uint32_t b = *reinterpret_cast<const uint32_t*>(c + 8 * n * from.row + 8 * g);
      MmaBf16(sum[n], basis[0].high, basis[1].high, basis[0].middle, basis[1].middle, b, b);
      MmaBf16K8(sum[n], basis[0].low, basis[1].low, b);
    }
  }
  uint8_t* const upper = tile + shape.Row(token + lane / 4) + 2 * (first + 2 * (lane % 4));
  uint8_t* const lower = upper + shape.Row(8);
#pragma unroll
  for (int n = 0; n < kTilesAtOnce; ++n) {
    if (!kAll && (spectral >> n & 1u) == 0) continue;
    const float2 scale =
        *reinterpret_cast<const float2*>(from.scale + first + 8 * n + 2 * (lane % 4));
    *reinterpret_cast<uint32_t*>(upper + 16 * n) =
        Element<kType>::Round(sum[n][0] * scale.x, sum[n][1] * scale.y);
    *reinterpret_cast<uint32_t*>(lower + 16 * n) =
        Element<kType>::Round(sum[n][2] * scale.x, sum[n][3] * scale.y);
  }
}

}  // namespace fourierkv::kernels::codec
