// Weights and outputs of a unit of uniform heads, for four query heads at once: softmax over its
// scores, C_V^T (basis^T p) + V_R^T p. Lane (r, c) has those of head c. docs/kernels.md.

#pragma once

#include <cstdint>

#include "kernels/attention_outputs.cuh"
#include "kernels/attention_program.h"
#include "kernels/attention_uniform_copies.cuh"
#include "kernels/attention_uniform_record.cuh"
#include "kernels/attention_uniform_scores.cuh"
#include "kernels/mma.cuh"

namespace fourierkv::kernels {

// Weights, relative to the unit's largest, as B operands; columns 2 h and 2 h + 1 are the parts of
// head h. Of residents of 4 and 8 bits: integers up to kWholeWeight as two bytes, [2 b + half]:
// tokens of tiles 4 b .. 4 b + 3, in rows 2 c + 8 half, then 2 c + 1 + 8 half. Of 16 bits: two
// bf16, [t]: rows 2 c and 2 c + 1 of tile t, then 2 c + 8 and 2 c + 9.
template <int kBits>
struct UniformWeights {
  static constexpr int kOperands = kBits == 16 ? 16 : 8;
  uint32_t b[kOperands][2];
};

// `factor` turns scores into units of log2. Returns the largest of head c, in these.
template <int kBits>
__device__ __forceinline__ float WeighUniform(UniformScores& scores, float factor,
                                              UniformWeights<kBits>& weights) {
  float even = scores[0];
  float odd = scores[1];
#pragma unroll
  for (int i = 2; i < 32; i += 2) {
    even = fmaxf(even, scores[i]);
    odd = fmaxf(odd, scores[i + 1]);
  }
  float largest = MaxOverRows(fmaxf(even, odd));
  const float result = largest * factor;
  // Differences of huge scores are taken before they are rounded: no weight must exceed the whole.
  if (__any_sync(~0u, fabsf(result) > 65536.0f)) {
#pragma unroll
    for (int i = 0; i < 32; ++i) scores[i] -= largest;
    largest = 0;
  }
  const float base = fmaf(-largest, factor, kBits == 16 ? 0.0f : kLogWholeWeight);
  if constexpr (kBits == 16) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const float p = Exp2(fmaf(scores[i], factor, base));
      weights.b[i / 2][i % 2] = Transpose8x8(SplitBf16(p));
    }
  } else {
    constexpr float kRound = 8388608.0f;  // the integer is then in the lower bits
    const auto integer = [&](int i) {
      return __float_as_uint(Exp2(fmaf(scores[i], factor, base)) + kRound);
    };
#pragma unroll
    for (int b = 0; b < 4; ++b) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t pairs[2];  // of tiles: upper bytes, then lower ones
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int score = 8 * b + 4 * i + half;
          pairs[i] = Transpose8x8(__byte_perm(integer(score), integer(score + 2), 0x4051));
        }
        weights.b[2 * b + half][0] = __byte_perm(pairs[0], pairs[1], 0x5410);
        weights.b[2 * b + half][1] = __byte_perm(pairs[0], pairs[1], 0x7632);
      }
    }
  }
  return result;
}

// basis^T p of coefficient m = r and head c, but for a factor. The constant column is 1 in the
// table, and the factor for it is the constant: `sum` becomes head c's sum of weights.
template <int kBits>
__device__ __forceinline__ float BasisSums(const UniformWeights<kBits>& weights,
                                           const uint8_t* basis, int lane, float* sum) {
  const auto* table = reinterpret_cast<const uint4*>(basis) + lane;
  float w;
  if constexpr (kBits == 16) {
    float even[4] = {}, odd[4] = {};
#pragma unroll
    for (int t = 0; t < 16; t += 2) {
      const uint4 a = __ldg(table + 32 * t);
      const uint4 b = __ldg(table + 32 * t + 32);
      MmaBf16(even, a.x, a.y, a.z, a.w, weights.b[t][0], weights.b[t][1]);
      MmaBf16(odd, b.x, b.y, b.z, b.w, weights.b[t + 1][0], weights.b[t + 1][1]);
    }
    w = (even[0] + odd[0]) + (even[1] + odd[1]) + ((even[2] + odd[2]) + (even[3] + odd[3]));
    *sum = __shfl_sync(~0u, w, lane & 3);
  } else {
    int even[4] = {}, odd[4] = {};
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const uint4 a = __ldg(table + 32 * i);
      const uint4 b = __ldg(table + 32 * i + 32);
      MmaS8U8(even, a.x, a.y, a.z, a.w, weights.b[i][0], weights.b[i][1]);
      MmaS8U8(odd, b.x, b.y, b.z, b.w, weights.b[i + 1][0], weights.b[i + 1][1]);
    }
    // Upper limbs of the basis are rows r, lower ones rows r + 8.
    const auto value = [&](int i) { return static_cast<float>(even[i] + odd[i]); };
    w = fmaf(value(0), 65536.0f, fmaf(value(1) + value(2), 256.0f, value(3)));
    *sum = __shfl_sync(~0u, w, lane & 3) * (1.0f / 256 / kWholeWeight);
  }
  return w;
}

// o = o keep + more.
__device__ __forceinline__ void AddShared(uint32_t at, float keep, const float (&more)[4]) {
  const uint4 o = LoadShared16(at);
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(at),
               "f"(fmaf(__uint_as_float(o.x), keep, more[0])),
               "f"(fmaf(__uint_as_float(o.y), keep, more[1])),
               "f"(fmaf(__uint_as_float(o.z), keep, more[2])),
               "f"(fmaf(__uint_as_float(o.w), keep, more[3]))
               : "memory");
}
__device__ __forceinline__ void AddShared(uint32_t at, float keep, const float (&more)[2]) {
  const uint2 o = LoadShared8(at);
  asm volatile("st.shared.v2.f32 [%0], {%1,%2};" ::"r"(at),
               "f"(fmaf(__uint_as_float(o.x), keep, more[0])),
               "f"(fmaf(__uint_as_float(o.y), keep, more[1]))
               : "memory");
}

// Adds C_V^T w, where w is basis^T p of coefficient m = r and head c, with all factors. `small`:
// address of V's small data; `outputs`: of the four heads'.
template <int kBits>
__device__ __forceinline__ void AddCoefficientOutputs(uint32_t small, const UniformPart& part,
                                                      float w, float keep, uint32_t outputs,
                                                      int lane) {
  const int r = lane >> 2;
  const int m = 2 * (lane & 3);
  uint32_t b0, b1;
  if (kBits == 16) {
    const uint32_t split = SplitBf16(w);
    b0 = Transpose8x8(split & 0xffffu);
    b1 = Transpose8x8(split >> 16);
  } else {
    const uint32_t high = PackF16(w, 0.0f);
    b0 = Transpose8x8(high);
    b1 = Transpose8x8(PackF16(w - UnpackF16(high).x, 0.0f));
  }
  // Weights of coefficients that are not there are zero; others' rows stand in for them.
  const int size = kBits == 16 ? 2 : 1;
  const uint32_t data = small + part.data + size * 4 * r;
  const UnevenRow first(data + size * min(m, part.coefficients - 1) * part.channels);
  const UnevenRow second(data + size * min(m + 1, part.coefficients - 1) * part.channels);
  const uint32_t scales = small + 8 * r;
  const uint32_t own = outputs + 16 * lane;
  const int groups = (part.chunks + 1) / 2;
#pragma unroll 2
  for (int g = 0; g < groups; ++g) {
    uint32_t a[4];  // of channels 4 r + x: (m, m + 1)
    float x[4] = {}, y[4] = {};
    if (kBits == 16) {
      const uint2 u = first.Load8(64 * g);
      const uint2 v = second.Load8(64 * g);
      a[0] = __byte_perm(u.x, v.x, 0x5410);
      a[1] = __byte_perm(u.x, v.x, 0x7632);
      a[2] = __byte_perm(u.y, v.y, 0x5410);
      a[3] = __byte_perm(u.y, v.y, 0x7632);
      MmaBf16K8(x, a[0], a[1], b0);
      MmaBf16K8(y, a[2], a[3], b0);
      MmaBf16K8(x, a[0], a[1], b1);
      MmaBf16K8(y, a[2], a[3], b1);
      AddShared(own + 512 * g, keep, {x[0], x[2], y[0], y[2]});
    } else {
      const uint32_t u = first.Load4(32 * g);
      const uint32_t v = second.Load4(32 * g);
      IntegersToF16(__byte_perm(u, v, 0x5140), &a[0], &a[1]);
      IntegersToF16(__byte_perm(u, v, 0x7362), &a[2], &a[3]);
      const uint2 scale = LoadShared8(scales + 64 * g);
      MmaF16K8(x, a[0], a[1], b0);
      MmaF16K8(y, a[2], a[3], b0);
      MmaF16K8(x, a[0], a[1], b1);
      MmaF16K8(y, a[2], a[3], b1);
      AddShared(own + 512 * g, keep,
                {x[0] * LowBf16(scale.x), x[2] * HighBf16(scale.x), y[0] * LowBf16(scale.y),
                 y[2] * HighBf16(scale.y)});
    }
  }
}

// Address of a lane's pieces of V's residents: of channel r of a chunk, and `next` bytes behind it
// of channel r + 8.
struct ValuePieces {
  uint32_t at;
  uint32_t next;

  __device__ __forceinline__ uint4 Load(int row, int bytes) const {
    return LoadShared16(at + bytes + (row != 0 ? next : 0));
  }
};

// V_R^T p of kChunks chunks of 4 or 8 bits and head c: channels r, r + 8, times kWholeWeight; with
// 4 bits, times 16 as well. Of two chunks no product waits for another chunk's.
template <int kBits, int kChunks>
__device__ __forceinline__ void ResidentSums(const ValuePieces (&pieces)[kChunks],
                                             const UniformWeights<kBits>& weights,
                                             float (&sums)[kChunks][2]) {
  int acc[kChunks][2][4] = {};
  uint4 words[kChunks][4];  // channel r, r + 8; then their next 16 bytes
#pragma unroll
  for (int half = 0; half < (kBits == 4 ? 1 : 2); ++half) {
#pragma unroll
    for (int n = 0; n < kChunks; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) words[n][i] = pieces[n].Load(i % 2, 128 * half + 16 * (i / 2));
    }
#pragma unroll
    for (int b = 0; b < 4; ++b) {
#pragma unroll
      for (int n = 0; n < kChunks; ++n) {
        const auto word = [&](int i, uint32_t mask) { return Component(words[n][i], b) & mask; };
        if (kBits == 8) {
          MmaU8U8(acc[n][half], word(0, ~0u), word(1, ~0u), word(2, ~0u), word(3, ~0u),
                  weights.b[2 * b + half][0], weights.b[2 * b + half][1]);
          continue;
        }
        MmaU8U8(acc[n][0], word(0, kEvenNibbles), word(1, kEvenNibbles), word(2, kEvenNibbles),
                word(3, kEvenNibbles), weights.b[2 * b][0], weights.b[2 * b][1]);
        MmaU8U8(acc[n][1], word(0, kOddNibbles), word(1, kOddNibbles), word(2, kOddNibbles),
                word(3, kOddNibbles), weights.b[2 * b + 1][0], weights.b[2 * b + 1][1]);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kChunks; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Odd nibbles stand four bits up. All sums are below 2^24: exact.
      const int times = kBits == 4 ? 16 : 1;
      const int high = acc[n][0][2 * i] * times + acc[n][1][2 * i];
      const int low = acc[n][0][2 * i + 1] * times + acc[n][1][2 * i + 1];
      sums[n][i] = fmaf(static_cast<float>(high), 256.0f, static_cast<float>(low));
    }
  }
}

// The same of bf16.
__device__ __forceinline__ void PlainSums(const ValuePieces& pieces,
                                          const UniformWeights<16>& weights, float (&sums)[2]) {
  float acc[2][4] = {};
#pragma unroll
  for (int g = 0; g < 2; ++g) {
    uint4 x[2][2][2];  // [rows r + 8 of tiles][channel r, r + 8][rows 2 c, 2 c + 1]
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[i / 4][i / 2 % 2][i % 2] = pieces.Load(i / 2 % 2, 256 * g + 128 * (i / 4) + 16 * (i % 2));
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = __byte_perm(Component(x[i / 2][i % 2][0], e / 2),
                           Component(x[i / 2][i % 2][1], e / 2), e % 2 == 0 ? 0x5410 : 0x7632);
      }
      MmaBf16(acc[e % 2], a[0], a[1], a[2], a[3], weights.b[8 * g + e][0], weights.b[8 * g + e][1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sums[i] = (acc[0][2 * i] + acc[1][2 * i]) + (acc[0][2 * i + 1] + acc[1][2 * i + 1]);
  }
}

// Adds V_R^T p. Former outputs count `keep`, these `count`; `sum`: of the unit's weights. `memory`:
// address of V, whose residents are at `data`.
template <int kBits>
__device__ __forceinline__ void AddResidentOutputs(uint32_t memory, int data,
                                                   const UniformPart& part,
                                                   const UniformWeights<kBits>& weights, float sum,
                                                   float keep, float count, uint32_t outputs,
                                                   int lane) {
  constexpr int kRow = kUnitTokens * kBits / 8;
  const int r = lane >> 2;
  const float unit = count * (1.0f / kWholeWeight) * (kBits == 4 ? 0.0625f : 1.0f);
  const float offsets = count * sum;
  uint32_t place = outputs + 4 * UniformOutputs::ResidentFloats(part) + 8 * lane;
  uint32_t scales = memory + part.scale + 2 * r;
  const uint32_t residents = memory + data + 32 * (lane & 3);
  // Lanes without a channel, of the last chunk, take the last one.
  const auto pieces = [&](int n) {
    const int last = part.residents - 1;
    const int row = min(kChunk * n + r, last);
    return ValuePieces{residents + row * kRow,
                       static_cast<uint32_t>(min(kChunk * n + r + 8, last) - row) * kRow};
  };
  const auto add = [&](const float(&sums)[2]) {
    float more[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (kBits == 16) {
        more[i] = sums[i] * count;
      } else {
        more[i] = fmaf(sums[i], LoadSharedBf16(scales + 16 * i) * unit,
                       LoadSharedBf16(scales + 2 * part.residents + 16 * i) * offsets);
      }
    }
    AddShared(place, keep, more);
    place += 256;
    scales += 2 * kChunk;
  };
  int n = 0;
  if constexpr (kBits != 16) {
#pragma unroll 1
    for (; n + 1 < part.resident_chunks; n += 2) {
      float sums[2][2];
      ResidentSums<kBits, 2>({pieces(n), pieces(n + 1)}, weights, sums);
      add(sums[0]);
      add(sums[1]);
    }
  }
#pragma unroll 1
  for (; n < part.resident_chunks; ++n) {
    float sums[1][2];
    if constexpr (kBits == 16) {
      PlainSums(pieces(n), weights, sums[0]);
    } else {
      ResidentSums<kBits, 1>({pieces(n)}, weights, sums);
    }
    add(sums[0]);
  }
}

}  // namespace fourierkv::kernels
