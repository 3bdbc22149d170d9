// Scores of one unit: basis (C_K q) + K_R q, for up to 8 query heads at once. docs/kernels.md.

#pragma once

#include <cstdint>

#include "kernels/attention_copies.cuh"
#include "kernels/attention_program.h"
#include "kernels/mma.cuh"

namespace fourierkv::kernels {

// acc[4 b + j]: scores of the tokens (q = 4 r + b, k = 2 j) of heads 2 c, 2 c + 1, then those of
// k = 2 j + 1 times 16, all times 2^(exponent - 24), but for what all tokens have in common.
using ScoreTiles = float[16][4];

// Residents' scales times 2^exponent must stay within fp16, below 2^15. With this exponent, for
// which queries of residents are prepared, scales below 2^7 do.
inline constexpr int kUsualExponent = 8;

// Whether the largest scale, as bf16 bits, is from 2^-7 to 2^7, or there is none.
__device__ __forceinline__ bool UsualScale(uint32_t largest) {
  return largest == 0 || (largest >= 0x3c00u && largest < 0x4300u);
}

__device__ __forceinline__ uint32_t LoadU16(const uint8_t* at) {
  return *reinterpret_cast<const uint16_t*>(at);
}
__device__ __forceinline__ float LoadBf16(const uint8_t* at) {
  return __uint_as_float(LoadU16(at) << 16);
}

// A power of two as float. Requires -126 <= exponent <= 127.
__device__ __forceinline__ float PowerOfTwo(int exponent) {
  return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
}

// The least e with x < 2^e, for x >= 0; -126 or less for tiny values.
__device__ __forceinline__ int ExponentAbove(float x) {
  return static_cast<int>(__float_as_uint(x) >> 23) - 126;
}

// What PowerOfTwo can make of it, less kUsualExponent + 24: scales up to 2^108 are exact.
__device__ __forceinline__ int ClampExponent(int exponent) { return min(max(exponent, -94), 90); }

// Four queries as pairs of bf16 and what is left of them: 16 bits in all.
struct SplitQuery {
  uint32_t high[2];
  uint32_t low[2];

  __device__ __forceinline__ explicit SplitQuery(const float4& q) {
    high[0] = PackBf16(q.x, q.y);
    high[1] = PackBf16(q.z, q.w);
    low[0] = PackBf16(q.x - LowBf16(high[0]), q.y - HighBf16(high[0]));
    low[1] = PackBf16(q.z - LowBf16(high[1]), q.w - HighBf16(high[1]));
  }
};

// What scores are begun with, for one warp and unit. Queries are those of
// Worker::LoadCompactQueries.
template <int kBlocks>
class ScoreStart {
 public:
  static constexpr int kCount = kBlocks == 0 ? 1 : kBlocks;

  __device__ __forceinline__ ScoreStart(const uint8_t* small, const SmallBand* bands, int count,
                                        const float4* queries, int lane)
      : small_(small),
        address_(SharedAddress(small)),
        queries_(queries),
        lane_(lane),
        r_(lane >> 2),
        c_(lane & 3) {
    const uint32_t largest = __reduce_max_sync(~0u, LargestScale(bands, count));
    // Nearly always scales can be used as they are.
    usual_ = UsualScale(largest);
    scale_exponent_ = static_cast<int>(largest >> 7) - 126;
    if (!usual_) coefficient_shift_ = ClampExponent(14 - scale_exponent_);
#pragma unroll 1
    for (int b = 0; b < count; ++b) {
      const SmallBand band = bands[b];
      if (band.kind == kSpectral8) {
        const int whole = band.channels / kChunk;
#pragma unroll 2
        for (int i = 0; i < whole; ++i) AddScaledChunk<false>(band, i);
        if (whole < band.chunks) AddScaledChunk<true>(band, whole);
      } else if (band.kind == kSpectral16) {
#pragma unroll 1
        for (int i = 0; i < band.chunks; ++i) AddPlainChunk(band, i);
      } else if (band.kind == kScaled) {
#pragma unroll 1
        for (int i = 0; i < band.chunks; ++i) AddOffsets(band, i);
      }
    }
    const float unscale = usual_ ? 1.0f : PowerOfTwo(-coefficient_shift_);
#pragma unroll
    for (int block = 0; block < kCount; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        plain_[block][i] = fmaf(scaled_[block][i], unscale, plain_[block][i]);
      }
    }
  }

  // Fills `acc`, gives what all tokens' scores have in common, for heads 2 c, 2 c + 1, and returns
  // the exponent. `constant` is the basis's first column.
  __device__ __forceinline__ int Begin(ScoreTiles& acc, float constant, const uint8_t* basis,
                                       int blocks, float (&mean)[2]) {
    constexpr float kFromResidentQueries = 1.0f / (1 << kUsualExponent);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      mean[i] =
          fmaf(__shfl_sync(~0u, plain_[0][i], c_), constant, offsets_[i] * kFromResidentQueries);
    }
    float largest = 0;
#pragma unroll
    for (int block = 0; block < kCount; ++block) {
      if (block == 0 && r_ == 0) plain_[0][0] = plain_[0][1] = 0;
      largest = fmaxf(largest, fmaxf(fabsf(plain_[block][0]), fabsf(plain_[block][1])));
      if (kBlocks > 0) {
        largest = fmaxf(largest, fmaxf(fabsf(plain_[block][2]), fabsf(plain_[block][3])));
      }
    }
    // Operands are kept below 2^15: scales times 2^exponent, coefficients times 2^(exponent - 24).
    int exponent = kUsualExponent;
    const int coefficient_exponent =
        ExponentAbove(__uint_as_float(__reduce_max_sync(~0u, __float_as_uint(largest)))) - 24;
    // Without scales, coefficients decide alone, if there are any but the first.
    const bool only_coefficients = scale_exponent_ == -126 && coefficient_exponent > -126;
    if (!usual_ || only_coefficients || coefficient_exponent > 14 - kUsualExponent) {
      exponent = ClampExponent(14 - max(scale_exponent_, coefficient_exponent));
    }
    const float unit = PowerOfTwo(exponent - 24);
    if (kBlocks > 0 || blocks == 0) {
#pragma unroll
      for (int t = 0; t < 16; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[t][i] = 0;
      }
    }
    if (blocks == 0) return exponent;
    if constexpr (kBlocks == 0) {
      const uint32_t b0 = Transpose8x8(PackF16(plain_[0][0] * unit, plain_[0][1] * unit));
      const float zero[4] = {0, 0, 0, 0};
      const auto* table = reinterpret_cast<const uint2*>(basis) + lane_;
#pragma unroll
      for (int t = 0; t < 16; ++t) {
        const uint2 a = __ldg(table + 32 * t);
        MmaF16K8(acc[t], a.x, a.y, b0, zero);
      }
    } else {
#pragma unroll
      for (int block = 0; block < kCount; ++block) {
        if (block >= blocks) break;
        const uint32_t b0 = Transpose8x8(PackF16(plain_[block][0] * unit, plain_[block][1] * unit));
        const uint32_t b1 = Transpose8x8(PackF16(plain_[block][2] * unit, plain_[block][3] * unit));
        const auto* table = reinterpret_cast<const uint4*>(basis) + block * 512 + lane_;
#pragma unroll
        for (int t = 0; t < 16; ++t) {
          const uint4 a = __ldg(table + 32 * t);
          MmaF16(acc[t], a.x, a.y, a.z, a.w, b0, b1);
        }
      }
    }
    return exponent;
  }

 private:
  // Of this lane's share of all scales, as bf16 bits: the order of bits is the order of values.
  __device__ __forceinline__ uint32_t LargestScale(const SmallBand* bands, int count) const {
    uint32_t largest = 0;
#pragma unroll 1
    for (int b = 0; b < count; ++b) {
      const SmallBand band = bands[b];
      if (band.kind == kSpectral16 || band.kind == kPlain) continue;
#pragma unroll 1
      for (int j = 2 * lane_; j < band.channels; j += 64) {
        const uint32_t pair = *reinterpret_cast<const uint32_t*>(small_ + band.scale + 2 * j);
        largest = max(largest, pair & 0xffffu);
        if (j + 1 < band.channels) largest = max(largest, pair >> 16);
      }
    }
    return largest;
  }

  // C_K q over 16 channels of int8 coefficients, times 2^coefficient_shift_ if that is not usual.
  template <bool kPartial>
  __device__ __forceinline__ void AddScaledChunk(const SmallBand& band, int i) {
    const float4 q = queries_[(band.first_chunk + i) * 32 + lane_];
    const uint2 pairs = *reinterpret_cast<const uint2*>(small_ + band.scale + 32 * i + 8 * c_);
    float scale[4] = {LowBf16(pairs.x), HighBf16(pairs.x), LowBf16(pairs.y), HighBf16(pairs.y)};
    if (kPartial) {
      // Behind the last scale is anything, even NaN.
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        if (kChunk * i + 4 * c_ + x >= band.channels) scale[x] = 0;
      }
    }
    float scaled[4] = {q.x * scale[0], q.y * scale[1], q.z * scale[2], q.w * scale[3]};
    if (!usual_) {
      const float factor = PowerOfTwo(coefficient_shift_);
#pragma unroll
      for (int x = 0; x < 4; ++x) scaled[x] *= factor;
    }
    const uint32_t b0 = PackF16(scaled[0], scaled[1]);
    const uint32_t b1 = PackF16(scaled[2], scaled[3]);
    const uint32_t row = address_ + band.data + r_ * band.channels + kChunk * i + 4 * c_;
#pragma unroll
    for (int block = 0; block < kCount; ++block) {
      const int m = 16 * block + r_;
      if (kBlocks > 0 && 16 * block >= band.coefficients) break;
      uint32_t a[4] = {0, 0, 0, 0};
      Integers(row + 16 * block * band.channels, m < band.coefficients, &a[0], &a[2]);
      if (kBlocks > 0 && 16 * block + 8 < band.coefficients) {
        Integers(row + (16 * block + 8) * band.channels, m + 8 < band.coefficients, &a[1], &a[3]);
      }
      MmaF16(scaled_[block], a[0], a[1], a[2], a[3], b0, b1);
    }
  }

  // Four int8 as pairs of fp16: 1024 + (c + 128) - 1152; zeros unless `valid`.
  static __device__ __forceinline__ void Integers(uint32_t at, bool valid, uint32_t* first,
                                                  uint32_t* second) {
    uint32_t bytes = 0x80808080u;
    if (valid) bytes ^= LoadBytes(at);
    *first = SubF16(__byte_perm(bytes, 0x64646464u, 0x4140), 0x64806480u);
    *second = SubF16(__byte_perm(bytes, 0x64646464u, 0x4342), 0x64806480u);
  }

  // The same of bf16 coefficients.
  __device__ __forceinline__ void AddPlainChunk(const SmallBand& band, int i) {
    const SplitQuery q(queries_[(band.first_chunk + i) * 32 + lane_]);
    const int valid = band.channels - kChunk * i;
    const uint8_t* row = small_ + band.data + 2 * (r_ * band.channels + kChunk * i + 4 * c_);
#pragma unroll
    for (int block = 0; block < kCount; ++block) {
      const int m = 16 * block + r_;
      if (kBlocks > 0 && 16 * block >= band.coefficients) break;
      uint32_t a[4] = {0, 0, 0, 0};
      Halves(row + 32 * block * band.channels, m < band.coefficients ? valid : 0, &a[0], &a[2]);
      if (kBlocks > 0 && 16 * block + 8 < band.coefficients) {
        Halves(row + (32 * block + 16) * band.channels, m + 8 < band.coefficients ? valid : 0,
               &a[1], &a[3]);
      }
      MmaBf16(plain_[block], a[0], a[1], a[2], a[3], q.high[0], q.high[1]);
      MmaBf16(plain_[block], a[0], a[1], a[2], a[3], q.low[0], q.low[1]);
    }
  }

  __device__ __forceinline__ void Halves(const uint8_t* at, int valid, uint32_t* first,
                                         uint32_t* second) const {
    const auto* values = reinterpret_cast<const uint16_t*>(at);
    uint32_t x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = 4 * c_ + i < valid ? values[i] : 0u;
    *first = x[0] | x[1] << 16;
    *second = x[2] | x[3] << 16;
  }

  // Offsets of resident channels do not depend on the token: sum of offset q, in every row.
  __device__ __forceinline__ void AddOffsets(const SmallBand& band, int i) {
    const SplitQuery q(queries_[(band.first_chunk + i) * 32 + lane_]);
    const int valid = band.channels - kChunk * i;
    const uint8_t* at = small_ + band.data + 2 * (kChunk * i + c_);
    uint32_t x[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] = c_ + 4 * k < valid ? LoadU16(at + 8 * k) : 0u;
    const uint32_t a0 = x[0] | x[1] << 16;
    const uint32_t a2 = x[2] | x[3] << 16;
    MmaBf16(offsets_, a0, 0, a2, 0, q.high[0], q.high[1]);
    MmaBf16(offsets_, a0, 0, a2, 0, q.low[0], q.low[1]);
  }

  const uint8_t* small_;
  uint32_t address_;
  const float4* queries_;
  int lane_, r_, c_;
  bool usual_;
  int scale_exponent_;
  int coefficient_shift_ = 0;
  float scaled_[kCount][4] = {};
  float plain_[kCount][4] = {};
  float offsets_[4] = {};
};

// Residents' queries times scales and 2^exponent, as the B operand of a chunk.
__device__ __forceinline__ void ScaledQueries(const Step& step, const uint8_t* small,
                                              const float4* queries, int exponent, int lane,
                                              uint32_t* b0, uint32_t* b1) {
  const int c = lane & 3;
  const float4 q = queries[step.chunk * 32 + lane];
  const uint8_t* at = small + step.scale + 2 * c;
  float scale[4] = {LoadBf16(at), LoadBf16(at + 8), LoadBf16(at + 16), LoadBf16(at + 24)};
  if (step.valid < kChunk) {
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      if (c + 4 * x >= step.valid) scale[x] = 0;
    }
  }
  float scaled[4] = {q.x * scale[0], q.y * scale[1], q.z * scale[2], q.w * scale[3]};
  if (exponent != kUsualExponent) {
    const float factor = PowerOfTwo(exponent - kUsualExponent);
#pragma unroll
    for (int x = 0; x < 4; ++x) scaled[x] *= factor;
  }
  *b0 = PackF16(scaled[0], scaled[1]);
  *b1 = PackF16(scaled[2], scaled[3]);
}

// Integers are used as the bits of subnormal fp16, which means n 2^-24: nibbles of even k where
// they stand, those of odd k four bits up, hence 16 times as large.
template <int kBits, int kLogS>
__device__ __forceinline__ void ScoreWords(ScoreTiles& acc, const uint8_t* slot,
                                           SegmentShape<kLogS> shape, int unit, int lane,
                                           uint32_t b0, uint32_t b1) {
  constexpr uint32_t kEven = kBits == 2 ? 0x00030003u : 0x000f000fu;
  constexpr uint32_t kOdd = kEven << 4;
  uint4 words[4];
#pragma unroll
  for (int x = 0; x < 4; ++x) {
    words[x] = LoadNibbles<false, kBits>(slot, shape, (lane & 3) + 4 * x, 8 * unit + (lane >> 2));
  }
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    const uint32_t w0 = Component(words[0], b), w1 = Component(words[1], b);
    const uint32_t w2 = Component(words[2], b), w3 = Component(words[3], b);
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      const int halves = j == 0 ? 0x5410 : 0x7632;
      const uint32_t first = __byte_perm(w0, w1, halves);
      const uint32_t second = __byte_perm(w2, w3, halves);
      MmaF16(acc[4 * b + j], first & kEven, first & kOdd, second & kEven, second & kOdd, b0, b1);
      MmaF16(acc[4 * b + j + 1], (first >> 8) & kEven, (first >> 8) & kOdd, (second >> 8) & kEven,
             (second >> 8) & kOdd, b0, b1);
    }
  }
}

// Byte `b` of two words as a pair of subnormal fp16; with kOdd 16 times as large, as 2^-10 + n
// 2^-20 less 2^-10.
template <bool kOdd>
__device__ __forceinline__ uint32_t BytePair(uint32_t low, uint32_t high, int b) {
  const uint32_t pair = __byte_perm(low, high, b | (4 + b) << 8);
  if (!kOdd) return pair & 0x00ff00ffu;
  return SubF16((pair & 0x00ff00ffu) | 0x14001400u, 0x14001400u);
}

// `place(row, piece)`: where bytes 16 piece .. + 15 of a channel's bytes of this unit are.
template <int kRun, typename Place>
__device__ __forceinline__ void ScoreBytes(ScoreTiles& acc, Place place, int lane, uint32_t b0,
                                           uint32_t b1) {
  const int r = lane >> 2;
  const int c = lane & 3;
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {  // k = 4 kRun + 2 pair, and the next
    uint32_t even[4], odd[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const int piece = 8 * kRun + 4 * pair + (r >> 2);
      even[x] = *reinterpret_cast<const uint32_t*>(place(c + 4 * x, piece) + (r & 3) * 4);
      odd[x] = *reinterpret_cast<const uint32_t*>(place(c + 4 * x, piece + 2) + (r & 3) * 4);
    }
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      MmaF16(acc[4 * b + 2 * kRun + pair], BytePair<false>(even[0], even[1], b),
             BytePair<true>(odd[0], odd[1], b), BytePair<false>(even[2], even[3], b),
             BytePair<true>(odd[2], odd[3], b), b0, b1);
    }
  }
}

// bf16 values times 16: four more in the exponent. (Zero becomes 2^-123, which is nothing.)
__device__ __forceinline__ uint32_t Times16(uint32_t pair) { return pair + 0x02000200u; }

template <int kRun>
__device__ __forceinline__ void ScoreHalves(ScoreTiles& acc, const uint8_t* slot, int lane,
                                            const SplitQuery& q) {
  const int r = lane >> 2;
  const int c = lane & 3;
  uint2 even[4], odd[4];  // k = 2 kRun, 2 kRun + 1
#pragma unroll
  for (int x = 0; x < 4; ++x) {
    const uint8_t* row = slot + (c + 4 * x) * 128 + (r & 1) * 8;
    even[x] = *reinterpret_cast<const uint2*>(row + (((r >> 1) ^ (c << 1)) << 4));
    odd[x] = *reinterpret_cast<const uint2*>(row + (((4 + (r >> 1)) ^ (c << 1)) << 4));
  }
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    const int halves = b % 2 == 0 ? 0x5410 : 0x7632;
    const auto pair = [&](const uint2& x, const uint2& y) {
      return b < 2 ? __byte_perm(x.x, y.x, halves) : __byte_perm(x.y, y.y, halves);
    };
    const uint32_t a0 = pair(even[0], even[1]), a2 = pair(even[2], even[3]);
    const uint32_t a1 = Times16(pair(odd[0], odd[1])), a3 = Times16(pair(odd[2], odd[3]));
    MmaBf16(acc[4 * b + kRun], a0, a1, a2, a3, q.high[0], q.high[1]);
    MmaBf16(acc[4 * b + kRun], a0, a1, a2, a3, q.low[0], q.low[1]);
  }
}

// Adds one resident step.
template <int kLogS>
__device__ __forceinline__ void ScoreStep(ScoreTiles& acc, const Step& step, const uint8_t* slot,
                                          const uint8_t* small, const float4* queries,
                                          SegmentShape<kLogS> shape, int unit, int exponent,
                                          int lane) {
  if (step.kind == 16) {
    float4 q = queries[step.chunk * 32 + lane];
    const float factor = PowerOfTwo(exponent - kUsualExponent - 24);
    q = {q.x * factor, q.y * factor, q.z * factor, q.w * factor};
    const SplitQuery split(q);
    switch (step.run) {
      case 0:
        return ScoreHalves<0>(acc, slot, lane, split);
      case 1:
        return ScoreHalves<1>(acc, slot, lane, split);
      case 2:
        return ScoreHalves<2>(acc, slot, lane, split);
      default:
        return ScoreHalves<3>(acc, slot, lane, split);
    }
  }
  uint32_t b0, b1;
  ScaledQueries(step, small, queries, exponent, lane, &b0, &b1);
  if (step.kind == 4) {
    ScoreWords<4>(acc, slot, shape, unit, lane, b0, b1);
  } else if (step.kind == 8) {
    const auto place = [&](int row, int piece) {
      return slot + row * 128 + (((piece & 7) ^ ByteSwizzle(row)) << 4);
    };
    if (step.run == 0) return ScoreBytes<0>(acc, place, lane, b0, b1);
    ScoreBytes<1>(acc, place, lane, b0, b1);
  } else if (step.kind == 3) {
    ScoreWords<3>(acc, slot, shape, unit, lane, b0, b1);
  } else {
    ScoreWords<2>(acc, slot, shape, unit, lane, b0, b1);
  }
}

}  // namespace fourierkv::kernels
