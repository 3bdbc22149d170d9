// Resident channels: a grid for each, then integers in bit planes. segment_tokens / 32 lanes share
// a channel, so a warp works on several at once, and a lane makes whole words.

#pragma once

#include <cfloat>
#include <cstdint>

#include "kernels/quantiser_trims.h"
#include "kernels/segment_tile.cuh"

namespace fourierkv::kernels::codec {

// What a thread adds to the measured error.
struct Totals {
  double energy = 0;    // sum of x^2
  double error = 0;     // sum of (x - x^)^2
  bool large = false;   // some x is not finite, or squares may leave float's range
  bool normal = false;  // some x has a square that is no smaller than float can hold well

  __device__ __forceinline__ void AddEnergy(float squares) {
    energy += squares;
    Judge(squares);
  }
  __device__ __forceinline__ void Judge(float squares) {
    large |= !(squares < 1e32f);
    normal |= squares > 1e-22f;
  }
};

// Values of a channel in a tile of 16-bit values as received.
template <ElementType kType, class Shape>
struct TileChannel {
  const uint8_t* channel;  // at token 0
  const Shape& shape;

  template <int kBits>
  __device__ __forceinline__ void Load(int lane, float (&x)[32]) const {
    const LaneRows<kBits, Shape> rows(shape, lane);
#pragma unroll
    for (int v = 0; v < 32; ++v) {
      x[v] = Element<kType>::ToFloat(*reinterpret_cast<const uint16_t*>(channel + rows.Row(v)));
    }
  }
};

// Values of a channel in floats, one token after the other.
struct FloatChannel {
  const float* channel;
  int lanes;

  template <int kBits>
  __device__ __forceinline__ void Load(int lane, float (&x)[32]) const {
    if constexpr (kBits <= 4) {
#pragma unroll
      for (int v = 0; v < 32; ++v) x[v] = channel[TokenOf<kBits>(v, lane, lanes)];
    } else {
#pragma unroll
      for (int v = 0; v < 32; v += 4) {
        const float4 four =
            *reinterpret_cast<const float4*>(channel + TokenOf<kBits>(v, lane, lanes));
        x[v] = four.x;
        x[v + 1] = four.y;
        x[v + 2] = four.z;
        x[v + 3] = four.w;
      }
    }
  }
};

// Adding it to a small number leaves the nearest integer, ties to even, in the lowest bits.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
constexpr uint32_t kRounderBits = 0x4b400000u;

// q stands for offset + scale * q, q from 0 to 2^kBits - 1.
template <int kBits>
struct Grid {
  static constexpr int kLevels = (1 << kBits) - 1;
  static constexpr bool kClips = GridTrimCount(kBits) > 1;

  float offset, scale, reciprocal;
  uint16_t offset_bits, scale_bits;

  // Over [low, high], less a fraction of it at both ends.
  __device__ __forceinline__ void Lay(float low, float high, double trim) {
    const double cut = __dmul_rn(trim, __dsub_rn(high, low));
    offset_bits = DoubleToBf16Down(__dadd_rn(low, cut));
    offset = Bf16ToFloat(offset_bits);
    scale_bits = QuotientToBf16Up<kLevels>(__dsub_rn(__dsub_rn(high, cut), offset));
    scale = Bf16ToFloat(scale_bits);
    reciprocal = scale > 0 ? fminf(1.0f / scale, FLT_MAX) : 0.0f;
  }

  // kRounder plus the integer of x, and the error x - x^. Ties take the even integer: quotients are
  // correctly rounded.
  __device__ __forceinline__ float Quantise(float x, float* error) const {
    const float shifted = x - offset;
    float quotient = shifted * reciprocal;
    quotient = fmaf(fmaf(-quotient, scale, shifted), reciprocal, quotient);
    float t = quotient + kRounder;
    if (kClips) t = fminf(fmaxf(t, kRounder), kRounder + kLevels);
    *error = fmaf(kRounder - t, scale, shifted);
    return t;
  }
};

// Sums and extremes over the lanes of a channel.
template <class Function>
__device__ __forceinline__ float ReduceLanes(float x, int lanes, Function function) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    x = function(x, __shfl_xor_sync(0xffffffffu, x, distance));
  }
  return x;
}

// What the bits of kRounder add up to in a word that integers were added to with them.
template <int kBits>
__device__ constexpr uint32_t RounderBitsInWord() {
  uint32_t word = 0;
  for (int k = 0; k < 32 / kBits; ++k) word = (word << kBits) + kRounderBits;
  return word;
}

// A word of integers, of which number k is that of x[first + k * kStep].
template <int kBits, int kStep>
__device__ __forceinline__ uint32_t MakeWord(const Grid<kBits>& grid, const float (&x)[32],
                                             int first, float* squares) {
  uint32_t word = 0;
#pragma unroll
  for (int k = 32 / kBits - 1; k >= 0; --k) {
    float error;
    word = (word << kBits) + __float_as_uint(grid.Quantise(x[first + k * kStep], &error));
    *squares = fmaf(error, error, *squares);
  }
  return word - RounderBitsInWord<kBits>();
}

// The two words of the plane of lower bits, number k of word e being x[2 k + e], and the word of
// the plane of upper bits.
__device__ __forceinline__ void MakePlanes(const Grid<3>& grid, const float (&x)[32],
                                           uint32_t (&low)[2], uint32_t* high, float* squares) {
  low[0] = low[1] = *high = 0;
#pragma unroll
  for (int v = 31; v >= 0; --v) {
    float error;
    const uint32_t code = __float_as_uint(grid.Quantise(x[v], &error));
    *squares = fmaf(error, error, *squares);
    low[v % 2] = low[v % 2] << 2 | (code & 3u);
    *high = *high << 1 | (code >> 2 & 1u);
  }
}

// The first of the possible grids that has the least squared error.
template <int kBits>
__device__ __forceinline__ void ChooseGrid(Grid<kBits>* grid, float low, float high,
                                           const float (&x)[32], int lanes) {
  grid->Lay(low, high, 0);
  if constexpr (GridTrimCount(kBits) > 1) {
    float least = 0;
#pragma unroll 1
    for (int i = 0; i < GridTrimCount(kBits); ++i) {
      Grid<kBits> trial;
      trial.Lay(low, high, GridTrim(kBits, i));
      float sum = 0;
#pragma unroll
      for (int v = 0; v < 32; ++v) {
        float error;
        trial.Quantise(x[v], &error);
        sum = fmaf(error, error, sum);
      }
      sum = ReduceLanes(sum, lanes, [](float a, float b) { return a + b; });
      if (i > 0 && sum >= least) continue;
      least = sum;
      *grid = trial;
    }
  }
}

// Channel j of a band, lane `lane` of those that share it; all lanes of a warp must come here
// together. Nothing is stored or added if not `active`.
template <int kBits, class Source>
__device__ __forceinline__ void EncodeResident(const Source& source, const BandView& band, int j,
                                               bool active, int lane, int lanes, uint8_t* payload,
                                               Totals* totals) {
  float x[32];
  source.template Load<kBits>(lane, x);
  float energies[2] = {0, 0};
#pragma unroll
  for (int v = 0; v < 32; ++v) energies[v % 2] = fmaf(x[v], x[v], energies[v % 2]);
  uint8_t* const data = payload + band.data_offset;
  float squares = 0;
  if constexpr (kBits == 16) {
    auto* to = reinterpret_cast<uint2*>(data) + static_cast<int64_t>(j) * 8 * lanes + lane;
#pragma unroll
    for (int v = 0; v < 32; v += 4) {
      const uint2 pairs = {PackBf16(x[v], x[v + 1]), PackBf16(x[v + 2], x[v + 3])};
      if (active) to[v / 4 * lanes] = pairs;
      const float stored[4] = {LowBf16(pairs.x), HighBf16(pairs.x), LowBf16(pairs.y),
                               HighBf16(pairs.y)};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        squares = fmaf(x[v + e] - stored[e], x[v + e] - stored[e], squares);
      }
    }
  } else {
    float low = x[0];
    float high = x[0];
#pragma unroll
    for (int v = 1; v < 32; ++v) {
      low = fminf(low, x[v]);
      high = fmaxf(high, x[v]);
    }
    low = ReduceLanes(low, lanes, [](float a, float b) { return fminf(a, b); });
    high = ReduceLanes(high, lanes, [](float a, float b) { return fmaxf(a, b); });
    Grid<kBits> grid;
    ChooseGrid(&grid, low, high, x, lanes);
    if (active && lane == 0) {
      reinterpret_cast<uint16_t*>(payload + band.scale_offset)[j] = grid.scale_bits;
      reinterpret_cast<uint16_t*>(payload + band.zero_offset)[j] = grid.offset_bits;
    }
    constexpr int kWords = kBits == 3 ? 2 : kBits;
    auto* words =
        reinterpret_cast<uint32_t*>(data) + static_cast<int64_t>(j) * kWords * lanes + lane;
    if constexpr (kBits == 3) {
      uint32_t lower[2], upper;
      MakePlanes(grid, x, lower, &upper, &squares);
      if (active) {
        words[0] = lower[0];
        words[lanes] = lower[1];
        auto* above = reinterpret_cast<uint32_t*>(payload + band.high_offset);
        above[static_cast<int64_t>(j) * lanes + lane] = upper;
      }
    } else {
#pragma unroll
      for (int e = 0; e < kWords; ++e) {
        // 8 bits: word e is of four neighbours; fewer: of every kWords-th value.
        constexpr int kStep = kBits == 8 ? 1 : kWords;
        const uint32_t word = MakeWord<kBits, kStep>(grid, x, kBits == 8 ? 4 * e : e, &squares);
        if (active) words[e * lanes] = word;
      }
    }
  }
  if (!active) return;
  totals->AddEnergy(energies[0] + energies[1]);
  totals->error += squares;
}

// EncodeResident with the band's bits.
template <class Source>
__device__ __forceinline__ void EncodeResidentOfBand(const Source& source, const BandView& band,
                                                     int j, bool active, int lane, int lanes,
                                                     uint8_t* payload, Totals* totals) {
  switch (band.bits) {
    case 2:
      return EncodeResident<2>(source, band, j, active, lane, lanes, payload, totals);
    case 3:
      return EncodeResident<3>(source, band, j, active, lane, lanes, payload, totals);
    case 4:
      return EncodeResident<4>(source, band, j, active, lane, lanes, payload, totals);
    case 8:
      return EncodeResident<8>(source, band, j, active, lane, lanes, payload, totals);
    default:
      return EncodeResident<16>(source, band, j, active, lane, lanes, payload, totals);
  }
}

}  // namespace fourierkv::kernels::codec
