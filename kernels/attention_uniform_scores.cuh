// Scores of a unit of uniform heads, for four query heads at once: basis (C_K q) + K_R q. Lane (r,
// c) ends with those of head c. docs/kernels.md.

#pragma once

#include <cstdint>

#include "kernels/attention_program.h"
#include "kernels/attention_scores.cuh"
#include "kernels/attention_uniform_copies.cuh"
#include "kernels/mma.cuh"

namespace fourierkv::kernels {

// [2 t + half]: row r + 8 half of tile t; UniformToken says which token that is. They are made
// eight tiles at a time: more would need too many registers.
using UniformScores = float[32];
inline constexpr int kTilesAtOnce = 8;

// Of 2^15, so that an upper limb has room for what the lower one carries.
inline constexpr float kHeadroom = 0.99f;

// Integers up to 2^22, added to these bits, are the bits of kMagic plus the integer.
inline constexpr int kMagicBits = 0x4b400000;
inline constexpr float kMagic = 12582912.0f;

// Scales of 2^7 or more, and of less than 2^-7 if there are no larger ones, would not do as fp16:
// then all scales of the coefficients are divided by a power of two, in place. Returns its
// exponent; nearly always 0. `small`: address of K's small data.
__device__ __forceinline__ int ReduceScales(uint32_t small, const UniformPart& part, int lane) {
  uint32_t largest = 0;
#pragma unroll 1
  for (int n = 4 * lane; n < part.channels; n += 128) {
    uint2 x = LoadShared8(small + 2 * n);
    // Behind the last scale is anything.
    if (n + 3 >= part.channels) x.y &= n + 2 < part.channels ? 0xffffu : 0u;
    if (n + 1 >= part.channels) x.x &= 0xffffu;
    const uint32_t pair = __vmaxu2(x.x, x.y);
    largest = max(largest, max(pair & 0xffffu, pair >> 16));
  }
  largest = __reduce_max_sync(~0u, largest);
  if (UsualScale(largest)) return 0;
  const int reduced = ClampExponent(static_cast<int>(largest >> 7) - 126 - 7);
  const float factor = PowerOfTwo(-reduced);
  __syncwarp();  // others have read them
  for (int n = lane; n < part.channels; n += 32) {
    const auto scale =
        static_cast<uint16_t>(__float_as_uint(LoadSharedBf16(small + 2 * n) * factor) >> 16);
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(small + 2 * n), "h"(scale) : "memory");
  }
  PartCopy::OrderWrites();
  __syncwarp();
  return reduced;
}

// Four int8 as pairs of fp16: 1024 + (c + 128) - 1152.
__device__ __forceinline__ void IntegersToF16(uint32_t bytes, uint32_t* first, uint32_t* second) {
  bytes ^= 0x80808080u;
  *first = SubF16(__byte_perm(bytes, 0x64646464u, 0x4140), 0x64806480u);
  *second = SubF16(__byte_perm(bytes, 0x64646464u, 0x4342), 0x64806480u);
}

// Adds C_K q over channels 32 i .. 32 i + 31. Rows r of A are coefficients m = r of the first 16,
// rows r + 8 those of the last; columns 2 h of B are head h of the first, 2 h + 1 of the last. Of
// all products of rows and columns, those that belong together stand where a lane has acc[0] and
// acc[3]. `scales` and `queries` are the lane's addresses.
__device__ __forceinline__ void AddCoefficientScores(float (&acc)[4], const UnevenRow& row,
                                                     uint32_t scales, uint32_t queries, int i) {
  const uint4 q = LoadShared16(queries + 512 * i);
  uint2 scale = LoadShared8(scales + 64 * i);
  scale.x = FiniteScales(scale.x);
  scale.y = FiniteScales(scale.y);
  uint32_t a[4];
  IntegersToF16(row.Load4(32 * i), &a[0], &a[2]);
  IntegersToF16(row.Load4(32 * i + 16), &a[1], &a[3]);
  MmaF16(
      acc, a[0], a[1], a[2], a[3],
      PackF16(__uint_as_float(q.x) * LowBf16(scale.x), __uint_as_float(q.y) * HighBf16(scale.x)),
      PackF16(__uint_as_float(q.z) * LowBf16(scale.y), __uint_as_float(q.w) * HighBf16(scale.y)));
}

// C_K q of coefficient m = r and head c; 0 for r >= M. `queries`: address of the coefficients'.
__device__ __forceinline__ float CoefficientScores(uint32_t small, const UniformPart& part,
                                                   uint32_t queries, int lane) {
  const int r = lane >> 2;
  const int c = lane & 3;
  const bool valid = r < part.coefficients;
  const UnevenRow row(small + part.data + (valid ? r * part.channels : 0) + 4 * c);
  const uint32_t scales = small + 2 * (4 * c + 4 * (lane & 4));
  const uint32_t own = queries + 16 * lane;
  float even[4] = {0, 0, 0, 0};
  float odd[4] = {0, 0, 0, 0};
  const int groups = (part.chunks + 1) / 2;
  int i = 0;
#pragma unroll 1
  for (; i + 1 < groups; i += 2) {
    AddCoefficientScores(even, row, scales, own, i);
    AddCoefficientScores(odd, row, scales, own, i + 1);
  }
  if (i < groups) AddCoefficientScores(even, row, scales, own, i);
  const float y = (even[0] + odd[0]) + (even[3] + odd[3]);
  return valid ? y : 0.0f;
}

// The first of a lane's four channels of chunk `n`: 16 n + 4 c; but the last lanes step back, so
// that there are four. What they have twice then has no query (ArrangeUniformQueries).
__device__ __forceinline__ int FirstResident(const UniformPart& part, int n, int lane) {
  return max(min(kChunk * n + 4 * (lane & 3), part.residents - 4), 0);
}

// Queries of a lane's channels of chunk `n` times their scales. `offsets`: the sum of offset q
// grows. `scales`: address of the residents'; `queries` of theirs.
__device__ __forceinline__ float4 ScaledResidentQueries(uint32_t scales, const UniformPart& part,
                                                        uint32_t queries, int n, int lane,
                                                        float* offsets) {
  const uint4 q = LoadShared16(queries + 512 * n + 16 * lane);
  const float own[4] = {__uint_as_float(q.x), __uint_as_float(q.y), __uint_as_float(q.z),
                        __uint_as_float(q.w)};
  const int row = FirstResident(part, n, lane);
  float scaled[4];
#pragma unroll
  for (int x = 0; x < 4; ++x) {
    const uint32_t at = scales + 2 * min(row + x, part.residents - 1);
    scaled[x] = own[x] * LoadSharedBf16(at);
    *offsets = fmaf(own[x], LoadSharedBf16(at + 2 * part.residents), *offsets);
  }
  return {scaled[0], scaled[1], scaled[2], scaled[3]};
}

__device__ __forceinline__ float LargestOf(const float4& v) {
  return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

// Rounds values times a factor to 16 bits, two signed limbs: x = 256 high + low.
struct Limbs {
  float factor;
  uint32_t select;  // of the limb that this lane's column is
  uint32_t flip;

  __device__ __forceinline__ Limbs(float f, int lane)
      : factor(f),
        select((lane & 4) == 0 ? 0x0051 : 0x0040),
        flip((lane & 4) == 0 ? 0u : 0x80808080u) {}

  __device__ __forceinline__ uint32_t operator()(const float4& v) const {
    constexpr float kRound = kMagic + 128;  // carries into the upper limb if the lower is negative
    const uint32_t x = __float_as_uint(fmaf(v.x, factor, kRound));
    const uint32_t y = __float_as_uint(fmaf(v.y, factor, kRound));
    const uint32_t z = __float_as_uint(fmaf(v.z, factor, kRound));
    const uint32_t w = __float_as_uint(fmaf(v.w, factor, kRound));
    return __byte_perm(__byte_perm(x, y, select), __byte_perm(z, w, select), 0x5410) ^ flip;
  }
};

// Eight bytes of each of a lane's four channels, from address `at` of the first.
struct ChannelBytes {
  uint2 of[4];

  __device__ __forceinline__ ChannelBytes(uint32_t at, int row_bytes) {
#pragma unroll
    for (int x = 0; x < 4; ++x) of[x] = LoadShared8(at + x * row_bytes);
  }
  // Bytes i of words b.
  __device__ __forceinline__ uint32_t Bytes(int b, int i) const {
    const int pair = i < 2 ? 0x5140 : 0x7362;
    const auto word = [&](int x) { return b == 0 ? of[x].x : of[x].y; };
    return __byte_perm(__byte_perm(word(0), word(1), pair), __byte_perm(word(2), word(3), pair),
                       i % 2 == 0 ? 0x5410 : 0x7632);
  }
};

using IntegerScores = int[kTilesAtOnce][4];
inline constexpr uint32_t kEvenNibbles = 0x0f0f0f0fu;
inline constexpr uint32_t kOddNibbles = 0xf0f0f0f0u;

// Adds a chunk of 4 or 8 bits to 8 tiles, or begins with it; columns 2 h and 2 h + 1 are the limbs
// of head h. `at`: address of these tiles' bytes of the lane's first channel.
template <int kBits, bool kFirst>
__device__ __forceinline__ void AddResidentScores(IntegerScores& acc, uint32_t at, uint32_t limbs) {
  constexpr int kMagics[4] = {kMagicBits, kMagicBits, kMagicBits, kMagicBits};
  constexpr int kRow = kUnitTokens * kBits / 8;
  const ChannelBytes first(at, kRow);
  const ChannelBytes second(kBits == 8 ? at + 128 : at, kRow);
#pragma unroll
  for (int t = 0; t < kTilesAtOnce; ++t) {
    const uint32_t own = first.Bytes(t / 4, t % 4);
    const uint32_t a0 = kBits == 4 ? own & kEvenNibbles : own;
    const uint32_t a1 = kBits == 4 ? own & kOddNibbles : second.Bytes(t / 4, t % 4);
    if (kFirst) {
      MmaU8S8K16(acc[t], a0, a1, limbs, kMagics);
    } else {
      MmaU8S8K16(acc[t], a0, a1, limbs, acc[t]);
    }
  }
}

// Begins with the first two chunks of 4 bits.
__device__ __forceinline__ void FirstResidentScores(IntegerScores& acc, uint32_t at, uint32_t next,
                                                    uint32_t limbs, uint32_t next_limbs) {
  constexpr int kMagics[4] = {kMagicBits, kMagicBits, kMagicBits, kMagicBits};
  const ChannelBytes first(at, 128), second(next, 128);
#pragma unroll
  for (int t = 0; t < kTilesAtOnce; ++t) {
    const uint32_t x = first.Bytes(t / 4, t % 4), y = second.Bytes(t / 4, t % 4);
    MmaU8S8(acc[t], x & kEvenNibbles, x & kOddNibbles, y & kEvenNibbles, y & kOddNibbles, limbs,
            next_limbs, kMagics);
  }
}

// Scores of int8 coefficients and residents of 4 or 8 bits.
template <int kBits>
class IntegerScorer {
 public:
  // `memory`: address of K, whose residents are at `data`.
  __device__ __forceinline__ IntegerScorer(uint32_t memory, const UniformPart& part, int reduced,
                                           uint32_t queries, float constant, int lane)
      : part_(part),
        scales_(memory + part.scale),
        queries_(queries + 512 * ((part.chunks + 1) / 2)),
        lane_(lane),
        limbs_(0, lane) {
    const int c = lane & 3;
    float y = CoefficientScores(memory, part, queries, lane) * PowerOfTwo(reduced);
    mean_ = __shfl_sync(~0u, y, c) * constant;
    if (lane < 4) y = 0;  // float takes care of the constant
    // Residents: operands of lane (r, c) belong to head r / 2, limb r % 2.
    float4 held[2] = {};
    float offsets = 0;
    if (part.resident_chunks > 0) {
      held[0] = ScaledResidentQueries(scales_, part, queries_, 0, lane, &offsets);
    }
    if (part.resident_chunks > 1) {
      held[1] = ScaledResidentQueries(scales_, part, queries_, 1, lane, &offsets);
    }
    float largest = fmaxf(LargestOf(held[0]), LargestOf(held[1]));
#pragma unroll 1
    for (int n = 2; n < part.resident_chunks; ++n) {
      largest = fmaxf(largest,
                      LargestOf(ScaledResidentQueries(scales_, part, queries_, n, lane, &offsets)));
    }
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    offsets += __shfl_xor_sync(~0u, offsets, 1);
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    offsets += __shfl_xor_sync(~0u, offsets, 2);
    mean_ += __shfl_sync(~0u, offsets, 8 * c);
    // All heads' scores are counted in 2^(total - 14).
    const int exponent = max(ExponentAbove(largest), -100);
    const uint32_t bits = __float_as_uint(fmaxf(fabsf(y), largest));
    total_ = max(ExponentAbove(__uint_as_float(__reduce_max_sync(~0u, bits))), -100);
    limbs_.factor = kHeadroom * PowerOfTwo(15 - exponent);
    first_[0] = limbs_(held[0]);
    first_[1] = limbs_(held[1]);
    const int own = __shfl_sync(~0u, exponent, 8 * c);
    unit_ = PowerOfTwo(max(own - 1 - total_, -126)) * (1.0f / kHeadroom);
    // Coefficients, in two parts of 11 bits.
    y *= PowerOfTwo(14 - total_);
    const uint32_t high = PackF16(y, 0.0f);
    operand_[0] = Transpose8x8(high);
    operand_[1] = Transpose8x8(PackF16(y - UnpackF16(high).x, 0.0f));
    at_ = memory + part.small_bytes + 16 * (lane >> 2);
  }

  // Scores are what Score gives times this, plus mean().
  __device__ __forceinline__ float unscale() const { return PowerOfTwo(total_ - 14); }
  __device__ __forceinline__ float mean() const { return mean_; }

  // Of tiles 8 kHalf .. 8 kHalf + 7.
  template <int kHalf>
  __device__ __forceinline__ void Score(UniformScores& scores, const uint8_t* basis) const {
    const auto* table = reinterpret_cast<const uint4*>(basis) + 128 * kHalf + lane_;
    uint4 a[kTilesAtOnce / 2];
#pragma unroll
    for (int i = 0; i < kTilesAtOnce / 2; ++i) a[i] = __ldg(table + 32 * i);
    IntegerScores acc;
    Residents(acc, at_ + 8 * kHalf);
    // What a unit of the lower limb is; 4-bit rows r + 8 are 16 times as large.
    const float units[2] = {unit_, kBits == 4 ? unit_ * 0.0625f : unit_};
#pragma unroll
    for (int i = 0; i < kTilesAtOnce / 2; ++i) {
      float* const own = &scores[2 * kTilesAtOnce * kHalf + 4 * i];
      Finish(acc[2 * i], a[i].x, a[i].y, units, own);
      Finish(acc[2 * i + 1], a[i].z, a[i].w, units, own + 2);
    }
  }

 private:
  // K_R q: bits of kMagic plus integers.
  __device__ __forceinline__ void Residents(IntegerScores& acc, uint32_t at) const {
    constexpr int kRow = kUnitTokens * kBits / 8;
    const auto row = [&](int n) { return at + FirstResident(part_, n, lane_) * kRow; };
    int n = 1;
    if (part_.resident_chunks == 0) {
#pragma unroll
      for (int i = 0; i < 4 * kTilesAtOnce; ++i) acc[i / 4][i % 4] = kMagicBits;
    } else if (kBits == 4 && part_.resident_chunks > 1) {
      FirstResidentScores(acc, row(0), row(1), first_[0], first_[1]);
      n = 2;
    } else {
      AddResidentScores<kBits, true>(acc, row(0), first_[0]);
    }
#pragma unroll 1
    for (; n < part_.resident_chunks; ++n) {
      float offsets = 0;
      const uint32_t own =
          n == 1 ? first_[1]
                 : limbs_(ScaledResidentQueries(scales_, part_, queries_, n, lane_, &offsets));
      AddResidentScores<kBits, false>(acc, row(n), own);
    }
  }

  // Adds the coefficients' part.
  __device__ __forceinline__ void Finish(const int (&acc)[4], uint32_t a0, uint32_t a1,
                                         const float (&units)[2], float* scores) const {
    float s[4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float upper = __int_as_float(acc[2 * half]) - kMagic;
      const float lower =
          fmaf(__int_as_float(acc[2 * half + 1]), units[half], -kMagic * units[half]);
      s[2 * half] = fmaf(upper, 256.0f * units[half], lower);
      s[2 * half + 1] = __int_as_float(acc[2 * half + 1]);  // of no use, and no move
    }
    MmaF16K8(s, a0, a1, operand_[0]);
    MmaF16K8(s, a0, a1, operand_[1]);
    scores[0] = s[0];
    scores[1] = s[2];
  }

  const UniformPart& part_;
  const uint32_t scales_;
  const uint32_t queries_;  // address of the residents'
  const int lane_;
  Limbs limbs_;
  float mean_;
  int total_;
  float unit_;
  uint32_t first_[2];    // limbs of the first chunks, which are nearly always all
  uint32_t operand_[2];  // of the coefficients
  uint32_t at_;
};

// A float as two bf16, the first in the lower half; 16 bits in all.
__device__ __forceinline__ uint32_t SplitBf16(float x) {
  const uint32_t high = __float_as_uint(x) & 0xffff0000u;
  return __byte_perm(high, __float_as_uint(x - __uint_as_float(high)), 0x7632);
}

// C_K q of bf16 coefficients: as CoefficientScores. Columns 2 h and 2 h + 1 are parts of head h.
__device__ __forceinline__ float PlainCoefficientScores(uint32_t small, const UniformPart& part,
                                                        uint32_t queries, int lane) {
  const int r = lane >> 2;
  const int c = lane & 3;
  const bool valid = r < part.coefficients;
  const UnevenRow row(small + part.data + 2 * ((valid ? r * part.channels : 0) + 4 * c));
  float acc[4] = {0, 0, 0, 0};
#pragma unroll 2
  for (int i = 0; i < part.chunks; ++i) {
    const uint2 q = LoadShared8(queries + 256 * i + 8 * lane);
    uint2 a = row.Load8(32 * i);
    if (kChunk * (i + 1) > part.channels) {
      // Behind the last coefficient is anything, even NaN.
      const int left = part.channels - kChunk * i - 4 * c;
      a.x = left >= 2 ? a.x : left == 1 ? a.x & 0xffffu : 0u;
      a.y = left >= 4 ? a.y : left == 3 ? a.y & 0xffffu : 0u;
    }
    MmaBf16(acc, a.x, 0, a.y, 0, q.x, q.y);
  }
  return valid ? acc[0] + acc[1] : 0.0f;
}

// The same with everything in bf16.
class PlainScorer {
 public:
  __device__ __forceinline__ PlainScorer(uint32_t memory, const UniformPart& part, int,
                                         uint32_t queries, float constant, int lane)
      : part_(part), queries_(queries + 256 * part.chunks + 8 * lane), lane_(lane) {
    const float y = PlainCoefficientScores(memory, part, queries, lane);
    mean_ = __shfl_sync(~0u, y, lane & 3) * constant;
    operand_ = Transpose8x8(SplitBf16(lane < 4 ? 0.0f : y));
    at_ = memory + part.small_bytes + 16 * (lane >> 2);
  }

  __device__ __forceinline__ float unscale() const { return 1.0f; }
  __device__ __forceinline__ float mean() const { return mean_; }

  template <int kHalf>
  __device__ __forceinline__ void Score(UniformScores& scores, const uint8_t* basis) const {
    const auto* table = reinterpret_cast<const uint4*>(basis) + 256 * kHalf + lane_;
    float acc[kTilesAtOnce][4];
#pragma unroll
    for (int t = 0; t < kTilesAtOnce; ++t) {
      const uint4 a = __ldg(table + 32 * t);
      const float zero[4] = {0, 0, 0, 0};
      MmaBf16(acc[t], a.x, a.y, a.z, a.w, operand_, operand_, zero);
    }
#pragma unroll 1
    for (int n = 0; n < part_.resident_chunks; ++n) {
      AddResidents(acc, at_ + 256 * kHalf + 512 * FirstResident(part_, n, lane_),
                   LoadShared8(queries_ + 256 * n));
    }
#pragma unroll
    for (int t = 0; t < kTilesAtOnce; ++t) {
      float* const own = &scores[2 * kTilesAtOnce * kHalf + 2 * t];
      own[0] = acc[t][0] + acc[t][1];
      own[1] = acc[t][2] + acc[t][3];
    }
  }

 private:
  // Tokens of rows r of the tiles, then of rows r + 8, are 128 bytes apart.
  static __device__ __forceinline__ void AddResidents(float (&acc)[kTilesAtOnce][4], uint32_t at,
                                                      const uint2& q) {
    uint4 first[4], second[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      first[x] = LoadShared16(at + 512 * x);
      second[x] = LoadShared16(at + 512 * x + 128);
    }
#pragma unroll
    for (int t = 0; t < kTilesAtOnce; ++t) {
      const auto pair = [&](const uint4(&pieces)[4], int x) {
        return __byte_perm(Component(pieces[x], t / 2), Component(pieces[x + 1], t / 2),
                           t % 2 == 0 ? 0x5410 : 0x7632);
      };
      MmaBf16(acc[t], pair(first, 0), pair(second, 0), pair(first, 2), pair(second, 2), q.x, q.y);
    }
  }

  const UniformPart& part_;
  const uint32_t queries_;  // address of the lane's, of residents
  const int lane_;
  float mean_;
  uint32_t operand_;
  uint32_t at_;
};

template <int kBits>
struct UniformScorerOf {
  using Type = IntegerScorer<kBits>;
};
template <>
struct UniformScorerOf<16> {
  using Type = PlainScorer;
};

}  // namespace fourierkv::kernels
