// Spectral channels back: X^ = B C on tensor cores. Coefficients are exact in bf16, as integers or
// as they are; the basis is split in three terms of bf16.

#pragma once

#include <cstdint>

#include "kernels/segment_tile.cuh"
#include "kernels/slice_bands.cuh"

namespace fourierkv::kernels::codec {

// Coefficients of a slice's channels in shared memory; 0 of resident ones and beyond a band's M.
struct SliceCoefficients {
  uint16_t* c;   // [channels][row]: bf16 of integers or of coefficients
  int row;       // a multiple of 8
  float* scale;  // [channels]: of integers; 1 for coefficients
};

// By the whole block; what it wrote counts after the caller's barrier. Has a barrier itself.
__device__ __forceinline__ void LoadCoefficients(const PartView& part, const SliceBands& slice,
                                                 int begin, int channels, const uint8_t* payload,
                                                 const SliceCoefficients& to) {
  auto* const words = reinterpret_cast<uint32_t*>(to.c);
  for (int i = threadIdx.x; i < channels * to.row / 2; i += kThreads) words[i] = 0;
  for (int i = threadIdx.x; i < channels; i += kThreads) to.scale[i] = 0;
  __syncthreads();
  for (int b = 0; b < slice.count; ++b) {
    const SliceBand& band = slice.bands[b];
    const BandView& view = band.view;
    if (view.coefficients == 0) continue;
    const int width = band.end - band.begin;
    const uint8_t* const data = payload + view.data_offset;
    for (int i = threadIdx.x; i < width * view.coefficients; i += kThreads) {
      const int m = i / width;
      const int j = band.begin + i % width;
      const int channel = part.channels[view.channels + j] - begin;
      const int64_t at = static_cast<int64_t>(m) * view.size + j;
      to.c[channel * to.row + m] =
          view.bits == 16
              ? __ldg(reinterpret_cast<const uint16_t*>(data) + at)
              : FloatToBf16(static_cast<float>(__ldg(reinterpret_cast<const int8_t*>(data) + at)));
      if (m == 0) {
        const auto* scales = reinterpret_cast<const uint16_t*>(payload + view.scale_offset);
        to.scale[channel] = view.bits == 16 ? 1.0f : Bf16ToFloat(__ldg(scales + j));
      }
    }
  }
}

// Rows r and r + 8 and columns 2 c, 2 c + 1 of 16 tokens by a group of 8 columns of the basis.
__device__ __forceinline__ void LoadBasis(const PartView& part, int token, int group,
                                          SplitPair<ElementType::kBf16> (&rows)[2]) {
  const int lane = threadIdx.x % 32;
  const int t = token + lane / 4;
  const int m = 8 * group + 2 * (lane % 4);
  const auto value = [&part](int column, int row) {
    return column < part.columns ? __ldg(part.basis + column * part.segment_tokens + row) : 0.0f;
  };
  rows[0] = {value(m, t), value(m + 1, t)};
  rows[1] = {value(m, t + 8), value(m + 1, t + 8)};
}

constexpr int kTilesAtOnce = 8;  // of 8 channels

// Tokens [token, token + 16) of channels [from, from + 64) of a slice to a tile, as far as bits of
// `spectral` say that a group of 8 has any. By one warp.
template <ElementType kType, class Shape>
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
      if ((spectral >> n & 1u) == 0) continue;
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
    if ((spectral >> n & 1u) == 0) continue;
    const float2 scale =
        *reinterpret_cast<const float2*>(from.scale + first + 8 * n + 2 * (lane % 4));
    *reinterpret_cast<uint32_t*>(upper + 16 * n) =
        Element<kType>::Round(sum[n][0] * scale.x, sum[n][1] * scale.y);
    *reinterpret_cast<uint32_t*>(lower + 16 * n) =
        Element<kType>::Round(sum[n][2] * scale.x, sum[n][3] * scale.y);
  }
}

}  // namespace fourierkv::kernels::codec
