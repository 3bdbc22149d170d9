// What a block that decodes a rotated head has in shared memory: the rotation as operands, and what
// a segment's coefficients and offsets become when they are turned back.

#pragma once

#include <cstdint>

#include "kernels/channel_places.cuh"
#include "kernels/decode_basis.cuh"
#include "kernels/decode_channels.cuh"

namespace fourierkv::kernels::codec {

constexpr int kRotatedWarps = 8;
constexpr int kRotatedThreads = 32 * kRotatedWarps;
constexpr int kRows = 16;  // of coefficients and offsets that are turned back at once

// Columns of Y are taken in the order of the bands, resident ones first; both kinds fill up to
// steps of 16, with zeros.
struct ColumnOrder {
  int spectral;  // columns; they come first in the bands
  int residents;
  int resident_steps;
  int steps;

  // The place of column `at` in the order of the bands, or -1 if there is none.
  __device__ __forceinline__ int Position(int at) const {
    if (at < 16 * resident_steps) return at < residents ? spectral + at : -1;
    at -= 16 * resident_steps;
    return at < spectral ? at : -1;
  }
};

// What a block makes, and what is in its shared memory, in bytes from the start.
struct RotatedSizes {
  int32_t width;  // channels: a multiple of 32
  int32_t slices;
  int32_t most_steps;  // of columns
  int32_t groups;      // of 8 columns of the basis
  int32_t table_entries;
  int32_t trailing, rotation, turned, terms, constants, steps, places, bytes;
  int32_t payload_places;  // 0 if payloads are read from where they are; else they come last
  int32_t payload_bytes;   // of one

  __host__ __device__ int TermRow() const { return 16 * most_steps + 8; }
};

struct RotatedBlock {
  BasisTable table;
  uint4* rotation;       // [column steps][width / 8][32]: first terms of both halves, second terms
  uint2* turned;         // C': [groups][width / 8][32]: first terms, second terms
  uint16_t* terms;       // of coefficients and offsets: [2][kRows][TermRow()]
  float* constants;      // [width]
  uint16_t* steps;       // scales of resident columns, bf16: [2][16 most_steps]
  ChannelPlace* places;  // in the order of the bands
};

// Which channel of a product's 8 columns lane r has, in tile `tile` of those of a slice.
__device__ __forceinline__ int ChannelOf(int tile, int r) {
  return tile / 4 * 32 + DecodedChannels::Channel(tile % 4, r);
}

__device__ __forceinline__ void FillRotation(const PartView& part, const float* u, int head,
                                             int first, const ColumnOrder& order,
                                             const RotatedSizes& sizes, uint4* to) {
  const int d = part.head_dim;
  const uint16_t* const channels = part.channels + head * d;
  const int tiles = sizes.width / 8;
  for (int at = static_cast<int>(threadIdx.x); at < order.steps * tiles * 32;
       at += kRotatedThreads) {
    const int lane = at % 32;
    const int channel = first + ChannelOf(at / 32 % tiles, lane / 4);
    const int column = at / 32 / tiles * 16 + 2 * (lane % 4);
    const auto value = [&](int c) {
      const int position = order.Position(c);
      return channel < d && position >= 0
                 ? __ldg(u + static_cast<int64_t>(channel) * d + channels[position])
                 : 0.0f;
    };
    const SplitPair<ElementType::kBf16> near(value(column), value(column + 1));
    const SplitPair<ElementType::kBf16> far(value(column + 8), value(column + 9));
    to[at] = {near.high, far.high, near.middle, far.middle};
  }
}

// Rows [row, row + kRows) of coefficients, of which those after the last are offsets, and scales of
// resident columns. A thread has every kRotatedThreads-th column. `head` are the bytes of the head.
template <class Bytes>
__device__ __forceinline__ void LoadTerms(const ColumnOrder& order, const RotatedSizes& sizes,
                                          int groups, int row, const Bytes& head,
                                          const RotatedBlock& block, uint16_t* steps) {
  for (int at = static_cast<int>(threadIdx.x); at < 16 * order.steps; at += kRotatedThreads) {
    const int position = order.Position(at);
    ChannelPlace place = {};
    float scale = 0;
    float offset = 0;
    if (position >= 0) {
      place = block.places[position];
      scale = place.bits == 16 ? 1.0f : Bf16ToFloat(head.Two(place.scale));
      if (place.coefficients == 0 && place.bits != 16) offset = Bf16ToFloat(head.Two(place.zero));
    }
    if (at < 16 * order.resident_steps) steps[at] = FloatToBf16(scale);
    uint16_t* const to = block.terms + at;
    const int term = kRows * sizes.TermRow();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int m = row + r;
      float value = m == 8 * groups ? offset : 0.0f;
      if (m < place.coefficients) {
        value = place.bits == 16 ? Bf16ToFloat(head.Two(place.data + 2u * m * place.stride))
                                 : scale * head.One(place.data + m * place.stride);
      }
      const uint16_t high = FloatToBf16(value);
      to[r * sizes.TermRow()] = high;
      to[term + r * sizes.TermRow()] = FloatToBf16(value - Bf16ToFloat(high));
    }
  }
}

// Turns the rows in `terms` back: to `turned`, and the one of offsets to `constants`.
// `unit` is what coefficients of the table's columns are of stored ones.
__device__ __forceinline__ void TurnBack(const ColumnOrder& order, const RotatedSizes& sizes,
                                         int groups, int row, float unit,
                                         const RotatedBlock& block) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int tiles = sizes.width / 8;
  const uint32_t high =
      SharedAddress(block.terms + (lane & 15) * sizes.TermRow() + 8 * (lane >> 4));
  const uint32_t low = high + 2 * kRows * sizes.TermRow();
  for (int tile = static_cast<int>(threadIdx.x) / 32; tile < tiles; tile += kRotatedWarps) {
    float sum[4] = {};
    for (int s = 0; s < order.steps; ++s) {
      const uint4 u = block.rotation[(s * tiles + tile) * 32 + lane];
      uint32_t a[4];
      LoadMatrices<false>(a, high + 32 * s);
      MmaBf16(sum, a[0], a[1], a[2], a[3], u.x, u.y);
      MmaBf16(sum, a[0], a[1], a[2], a[3], u.z, u.w);
      LoadMatrices<false>(a, low + 32 * s);
      MmaBf16(sum, a[0], a[1], a[2], a[3], u.x, u.y);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int m = row + lane / 4 + 8 * (e / 2);
      const int n = 2 * (lane % 4) + e % 2;
      if (m == 8 * groups) block.constants[ChannelOf(tile, n)] = sum[e];
      if (m >= 8 * groups) continue;
      const float value = sum[e] * unit;
      const uint16_t first = FloatToBf16(value);
      auto* const to = reinterpret_cast<uint16_t*>(block.turned + (m / 8 * tiles + tile) * 32 +
                                                   4 * n + m % 8 / 2) +
                       m % 2;
      to[0] = first;
      to[2] = FloatToBf16(value - Bf16ToFloat(first));
    }
  }
}

}  // namespace fourierkv::kernels::codec
