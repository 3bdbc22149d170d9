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

// Sums and extremes over the lanes of a channel.
template <class Function>
__device__ __forceinline__ float ReduceLanes(float x, int lanes, Function function) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    x = function(x, __shfl_xor_sync(0xffffffffu, x, distance));
  }
  return x;
}

// Which of its 32 values (TokenOf) a lane keeps as pair i: those that become neighbouring integers,
// or 16-bit values, of a word.
template <int kBits>
__device__ constexpr int FirstOfPair(int i) {
  return kBits <= 4 ? i : kBits == 8 ? i / 2 * 4 + i % 2 : 2 * i;
}
template <int kBits>
__device__ constexpr int SecondOfPair(int i) {
  return FirstOfPair<kBits>(i) + (kBits <= 4 ? 16 : kBits == 8 ? 2 : 1);
}

// A lane's values of a channel in a tile of 16-bit values as received.
template <ElementType kType, class Shape>
class TileChannel {
 public:
  static constexpr bool kExactInBf16 = kType == ElementType::kBf16;
  static constexpr bool kOffsetsFold = true;  // see Grid
  static constexpr bool kAddsEnergy = false;  // tensor cores have done so

  __device__ __forceinline__ TileChannel(const uint8_t* channel, const Shape& shape)
      : channel_(channel), shape_(shape) {}

  template <int kBits>
  __device__ __forceinline__ void Load(int lane) {
    const LaneRows<kBits, Shape> rows(shape_, lane);
    const auto at = [&](int v) -> uint32_t {
      return *reinterpret_cast<const uint16_t*>(channel_ + rows.Row(v));
    };
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      pairs_[i] = LowerHalves(at(FirstOfPair<kBits>(i)), at(SecondOfPair<kBits>(i)));
    }
  }
  __device__ __forceinline__ float2 Pair(int i) const { return Element<kType>::Unpack(pairs_[i]); }
  __device__ __forceinline__ uint32_t Bits(int i) const { return pairs_[i]; }

  // The least and the greatest value of the channel's `lanes` lanes.
  __device__ __forceinline__ float2 Extremes(int lanes) const {
    uint32_t low = pairs_[0];
    uint32_t high = pairs_[0];
#pragma unroll
    for (int i = 1; i < 16; ++i) {
      low = Element<kType>::Min(low, pairs_[i]);
      high = Element<kType>::Max(high, pairs_[i]);
    }
    // Both are a minimum, of values and of what they are negated.
    const uint32_t negated = high ^ 0x80008000u;
    uint32_t least = Element<kType>::Min(LowerHalves(low, negated), UpperHalves(low, negated));
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      least = Element<kType>::Min(least, __shfl_xor_sync(0xffffffffu, least, distance));
    }
    const float2 found = Element<kType>::Unpack(least);
    return {found.x, -found.y};
  }

 private:
  const uint8_t* channel_;  // at token 0
  const Shape& shape_;
  uint32_t pairs_[16];
};

// A lane's values of a channel that stands in floats, one token after the other.
class FloatChannel {
 public:
  static constexpr bool kExactInBf16 = false;
  static constexpr bool kOffsetsFold = false;
  static constexpr bool kAddsEnergy = true;

  __device__ __forceinline__ FloatChannel(const float* channel, int lanes)
      : channel_(channel), lanes_(lanes) {}

  template <int kBits>
  __device__ __forceinline__ void Load(int lane) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      pairs_[i] = {channel_[TokenOf<kBits>(FirstOfPair<kBits>(i), lane, lanes_)],
                   channel_[TokenOf<kBits>(SecondOfPair<kBits>(i), lane, lanes_)]};
    }
  }
  __device__ __forceinline__ float2 Pair(int i) const { return pairs_[i]; }

  __device__ __forceinline__ float2 Extremes(int lanes) const {
    float low = pairs_[0].x;
    float high = pairs_[0].x;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      low = fminf(low, fminf(pairs_[i].x, pairs_[i].y));
      high = fmaxf(high, fmaxf(pairs_[i].x, pairs_[i].y));
    }
    return {ReduceLanes(low, lanes, [](float a, float b) { return fminf(a, b); }),
            ReduceLanes(high, lanes, [](float a, float b) { return fmaxf(a, b); })};
  }

 private:
  const float* channel_;
  int lanes_;
  float2 pairs_[16];
};

// q stands for offset + scale * q, q from 0 to 2^kBits - 1. Integers are made in pairs, by rounding
// kMagic + q to a 16-bit type whose unit is 1 there. What is rounded is a float near kMagic, whose
// last place is coarser than its error; so a quotient that is a tie is one exactly, and takes the
// even integer.
template <int kBits>
struct Grid {
  static constexpr int kLevels = (1 << kBits) - 1;
  static constexpr bool kClips = GridTrimCount(kBits) > 1;
  static constexpr ElementType kType = kBits == 8 ? ElementType::kFp16 : ElementType::kBf16;
  static constexpr float kMagic = kBits == 8 ? 1024.0f : 128.0f;
  static constexpr uint32_t kMagicBits = kBits == 8 ? 0x64006400u : 0x43004300u;

  float offset, scale, reciprocal, constant;
  uint16_t offset_bits, scale_bits;

  // Over [low, high], less a fraction of it at both ends.
  __device__ __forceinline__ void Lay(float low, float high, double trim) {
    const double cut = __dmul_rn(trim, __dsub_rn(high, low));
    offset_bits = DoubleToBf16Down(__dadd_rn(low, cut));
    offset = Bf16ToFloat(offset_bits);
    scale_bits = QuotientToBf16Up<kLevels>(__dsub_rn(__dsub_rn(high, cut), offset));
    scale = Bf16ToFloat(scale_bits);
    reciprocal = scale > 0 ? fminf(1.0f / scale, FLT_MAX) : 0.0f;
    constant = fmaf(-offset, reciprocal, kMagic);
  }

  // kMagic plus the quotient. Values that have 8 or 11 bits are never so close together that the
  // offset may not be subtracted behind the product.
  template <bool kOffsetsFold>
  __device__ __forceinline__ float2 Quotients(float2 x) const {
    if constexpr (kOffsetsFold) {
      return {fmaf(x.x, reciprocal, constant), fmaf(x.y, reciprocal, constant)};
    } else {
      return {fmaf(x.x - offset, reciprocal, kMagic), fmaf(x.y - offset, reciprocal, kMagic)};
    }
  }

  // kMagicBits plus the integers.
  __device__ __forceinline__ uint32_t Integers(float2 quotients) const {
    uint32_t pair;
    if constexpr (kBits == 8) {
      pair = PackF16(quotients.x, quotients.y);
    } else {
      pair = PackBf16(quotients.x, quotients.y);
    }
    if constexpr (kClips) {
      constexpr uint32_t kMost = kMagicBits + kLevels * 0x10001u;
      pair = Element<kType>::Min(Element<kType>::Max(pair, kMagicBits), kMost);
    }
    return pair;
  }

  // Adds the squared errors in units of a step.
  __device__ __forceinline__ static void AddSquares(float2 quotients, uint32_t integers,
                                                    float (&squares)[2]) {
    const float2 q = Element<kType>::Unpack(integers);
    const float x = quotients.x - q.x;
    const float y = quotients.y - q.y;
    squares[0] = fmaf(x, x, squares[0]);
    squares[1] = fmaf(y, y, squares[1]);
  }
  // In units of x^2.
  __device__ __forceinline__ float Squares(const float (&squares)[2]) const {
    return (squares[0] + squares[1]) * scale * scale;
  }
};

// A word of integers from pairs first, first + step, ...
template <int kBits, class Source>
__device__ __forceinline__ uint32_t MakeWord(const Grid<kBits>& grid, const Source& x, int first,
                                             int step, float (&squares)[2]) {
  uint32_t word = 0;
  uint32_t magic = 0;
#pragma unroll
  for (int k = 0; k < 16 / kBits; ++k) {
    const float2 quotients =
        grid.template Quotients<Source::kOffsetsFold>(x.Pair(first + k * step));
    const uint32_t pair = grid.Integers(quotients);
    grid.AddSquares(quotients, pair, squares);
    word += pair << kBits * k;
    magic += Grid<kBits>::kMagicBits << kBits * k;
  }
  return word - magic;
}

// The two words of the plane of lower bits and the word of the plane of upper bits.
template <class Source>
__device__ __forceinline__ void MakePlanes(const Grid<3>& grid, const Source& x, uint32_t (&low)[2],
                                           uint32_t* high, float (&squares)[2]) {
  low[0] = low[1] = *high = 0;
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const float2 quotients = grid.template Quotients<Source::kOffsetsFold>(x.Pair(i));
    const uint32_t pair = grid.Integers(quotients);
    grid.AddSquares(quotients, pair, squares);
    low[i % 2] |= (pair & 0x00030003u) << 2 * (i / 2);
    *high |= (pair >> 2 & 0x00010001u) << i;
  }
}

// The first of the possible grids that has the least squared error.
template <int kBits, class Source>
__device__ __forceinline__ void ChooseGrid(Grid<kBits>* grid, float2 extremes, const Source& x,
                                           int lanes) {
  grid->Lay(extremes.x, extremes.y, 0);
  if constexpr (GridTrimCount(kBits) > 1) {
    float least = 0;
#pragma unroll 1
    for (int i = 0; i < GridTrimCount(kBits); ++i) {
      Grid<kBits> trial;
      trial.Lay(extremes.x, extremes.y, GridTrim(kBits, i));
      float squares[2] = {0, 0};
#pragma unroll
      for (int p = 0; p < 16; ++p) {
        const float2 quotients = trial.template Quotients<Source::kOffsetsFold>(x.Pair(p));
        trial.AddSquares(quotients, trial.Integers(quotients), squares);
      }
      const float sum =
          ReduceLanes(trial.Squares(squares), lanes, [](float a, float b) { return a + b; });
      if (i > 0 && sum >= least) continue;
      least = sum;
      *grid = trial;
    }
  }
}

// Pair i as bf16, and its squared error.
template <class Source>
__device__ __forceinline__ uint32_t Stored(const Source& x, int i, float* error) {
  if constexpr (Source::kExactInBf16) {
    return x.Bits(i);
  } else {
    const float2 pair = x.Pair(i);
    const uint32_t bits = PackBf16(pair.x, pair.y);
    const float first = pair.x - LowBf16(bits);
    const float second = pair.y - HighBf16(bits);
    *error = fmaf(first, first, fmaf(second, second, *error));
    return bits;
  }
}

// Channel j of a band, lane `lane` of those that share it; all lanes of a warp must come here
// together. Nothing is stored or added if not `active`.
template <int kBits, class Source>
__device__ __forceinline__ void EncodeResident(Source x, const BandView& band, int j, bool active,
                                               int lane, int lanes, uint8_t* payload,
                                               Totals* totals) {
  x.template Load<kBits>(lane);
  uint8_t* const data = payload + band.data_offset;
  float error = 0;
  if constexpr (kBits == 16) {
    auto* to = reinterpret_cast<uint2*>(data) + static_cast<int64_t>(j) * 8 * lanes + lane;
#pragma unroll
    for (int w = 0; w < 8; ++w) {
      if (active) to[w * lanes] = {Stored(x, 2 * w, &error), Stored(x, 2 * w + 1, &error)};
    }
  } else {
    Grid<kBits> grid;
    ChooseGrid(&grid, x.Extremes(lanes), x, lanes);
    if (active && lane == 0) {
      reinterpret_cast<uint16_t*>(payload + band.scale_offset)[j] = grid.scale_bits;
      reinterpret_cast<uint16_t*>(payload + band.zero_offset)[j] = grid.offset_bits;
    }
    constexpr int kWords = kBits == 3 ? 2 : kBits;
    auto* words =
        reinterpret_cast<uint32_t*>(data) + static_cast<int64_t>(j) * kWords * lanes + lane;
    float squares[2] = {0, 0};
    if constexpr (kBits == 3) {
      uint32_t lower[2], upper;
      MakePlanes(grid, x, lower, &upper, squares);
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
        const uint32_t word = kBits == 8 ? MakeWord<kBits>(grid, x, 2 * e, 1, squares)
                                         : MakeWord<kBits>(grid, x, e, kWords, squares);
        if (active) words[e * lanes] = word;
      }
    }
    error = grid.Squares(squares);
  }
  if (!active) return;
  if constexpr (Source::kAddsEnergy) {
    float energies[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const float2 pair = x.Pair(i);
      energies[0] = fmaf(pair.x, pair.x, energies[0]);
      energies[1] = fmaf(pair.y, pair.y, energies[1]);
    }
    totals->AddEnergy(energies[0] + energies[1]);
  }
  totals->error += error;
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
