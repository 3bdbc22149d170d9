// Weights and outputs of one unit: softmax over its scores, C_V^T (basis^T p) + V_R^T p.
// docs/kernels.md.

#pragma once

#include <cstdint>

#include "kernels/attention_copies.cuh"
#include "kernels/attention_program.h"
#include "kernels/attention_scores.cuh"
#include "kernels/mma.cuh"

namespace fourierkv::kernels {

// Scores that no token has. Finite, so that differences are numbers.
inline constexpr float kNoScore = -3.0e38f;

// The softmax of a warp so far, for heads 2 c and 2 c + 1; the same in all lanes of a column.
// Maxima are of scores in units of log2.
struct Softmax {
  float largest[2] = {kNoScore, kNoScore};
  float sum[2] = {0, 0};
};

__device__ __forceinline__ float MaxOverRows(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 4));
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 8));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 16));
}
__device__ __forceinline__ float SumOverRows(float x) {
  x += __shfl_xor_sync(~0u, x, 4);
  x += __shfl_xor_sync(~0u, x, 8);
  return x + __shfl_xor_sync(~0u, x, 16);
}

// Raises the maxima; `keep` becomes what former sums and outputs count now.
__device__ __forceinline__ void RaiseMaxima(Softmax& softmax, const float (&largest)[2],
                                            float (&keep)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float raised = fmaxf(softmax.largest[i], largest[i]);
    keep[i] = Exp2(softmax.largest[i] - raised);
    softmax.largest[i] = raised;
    softmax.sum[i] *= keep[i];
  }
}

// Weights as B operands: [4 b + kk]: (q, kk), (q, kk + 4) of q = 8 c + b, then of q = 8 c + 4 + b,
// for head r. Where kk is odd they are 16 times too small.
using WeightTiles = uint32_t[16][2];

// `factor` turns scores of rows r into units of log2; `shift`, in these, is what all tokens' scores
// have in common. Per head.
__device__ __forceinline__ void WeighScores(ScoreTiles& acc, const float (&factor)[2],
                                            const float (&shift)[2], bool void_rows,
                                            Softmax& softmax, float (&keep)[2],
                                            WeightTiles& weights) {
  float even[2] = {kNoScore, kNoScore};
  float odd[2] = {kNoScore, kNoScore};
#pragma unroll
  for (int t = 0; t < 16; ++t) {
    even[0] = fmaxf(even[0], acc[t][0]);
    even[1] = fmaxf(even[1], acc[t][1]);
    odd[0] = fmaxf(odd[0], acc[t][2]);
    odd[1] = fmaxf(odd[1], acc[t][3]);
  }
  float largest[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float own = fmaf(fmaxf(even[i], odd[i] * 0.0625f), factor[i], shift[i]);
    largest[i] = MaxOverRows(void_rows ? kNoScore : own);
  }
  RaiseMaxima(softmax, largest, keep);
  const float base[2] = {shift[0] - softmax.largest[0], shift[1] - softmax.largest[1]};
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    uint32_t rows[4][2];  // [j][k odd]
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float(&s)[4] = acc[4 * b + j];
      float p[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        p[i] = Exp2(fmaf(s[i], factor[i], base[i]));
        p[2 + i] = Exp2(fmaf(s[2 + i], factor[i] * 0.0625f, base[i] - 4.0f));
      }
      rows[j][0] = Transpose8x8(void_rows ? 0u : PackF16(p[0], p[1]));
      rows[j][1] = Transpose8x8(void_rows ? 0u : PackF16(p[2], p[3]));
    }
#pragma unroll
    for (int kk = 0; kk < 4; ++kk) {
      const uint32_t first = rows[kk / 2][kk % 2];
      const uint32_t second = rows[2 + kk / 2][kk % 2];  // k + 4
      weights[4 * b + kk][0] = __byte_perm(first, second, 0x5410);
      weights[4 * b + kk][1] = __byte_perm(first, second, 0x7632);
    }
  }
}

// basis^T p, as B operands of the coefficients' products.
template <int kBlocks>
struct BasisWeights {
  static constexpr int kCount = kBlocks == 0 ? 1 : kBlocks;
  // [block][coefficients 0-7, then 8-15]
  uint32_t f16[kCount][2];
  uint32_t high[kCount][2];  // bf16, and what is left of them
  uint32_t low[kCount][2];

  // Adds the unit's sum to the softmax's and gives it in `sum`.
  __device__ __forceinline__ BasisWeights(const WeightTiles& weights, const uint8_t* basis,
                                          int blocks, float constant, int lane, Softmax& softmax,
                                          float (&sum)[2]) {
    const int r = lane >> 2;
#pragma unroll
    for (int block = 0; block < kCount; ++block) {
      if (block >= blocks) break;
      // Two sums, so that no product waits for the one before.
      float w[4] = {0, 0, 0, 0};
      float w_odd[4] = {0, 0, 0, 0};
      if (kBlocks == 0) {
        const auto* table = reinterpret_cast<const uint2*>(basis) + lane;
#pragma unroll
        for (int t = 0; t < 16; t += 2) {
          const uint2 a = __ldg(table + 32 * t);
          const uint2 b = __ldg(table + 32 * t + 32);
          MmaF16(w, a.x, 0, a.y, 0, weights[t][0], weights[t][1]);
          MmaF16(w_odd, b.x, 0, b.y, 0, weights[t + 1][0], weights[t + 1][1]);
        }
      } else {
        const auto* table = reinterpret_cast<const uint4*>(basis) + block * 512 + lane;
#pragma unroll
        for (int t = 0; t < 16; t += 2) {
          const uint4 a = __ldg(table + 32 * t);
          const uint4 b = __ldg(table + 32 * t + 32);
          MmaF16(w, a.x, a.y, a.z, a.w, weights[t][0], weights[t][1]);
          MmaF16(w_odd, b.x, b.y, b.z, b.w, weights[t + 1][0], weights[t + 1][1]);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) w[i] += w_odd[i];
      if (block == 0) {
        sum[0] = __shfl_sync(~0u, w[0], lane & 3);
        sum[1] = __shfl_sync(~0u, w[1], lane & 3);
        softmax.sum[0] += sum[0];
        softmax.sum[1] += sum[1];
      }
      const float own = block == 0 && r == 0 ? constant : 1.0f;
      Store(block, 0, w[0] * own, w[1] * own);
      if (kBlocks > 0) Store(block, 1, w[2], w[3]);
    }
  }

 private:
  __device__ __forceinline__ void Store(int block, int half, float x, float y) {
    f16[block][half] = Transpose8x8(PackF16(x, y));
    const uint32_t pair = PackBf16(x, y);
    high[block][half] = Transpose8x8(pair);
    low[block][half] = Transpose8x8(PackBf16(x - LowBf16(pair), y - HighBf16(pair)));
  }
};

// Outputs of a warp, in shared memory, for one lane: [chunk]: channels r, then r + 8 of the chunk,
// of heads 2 c, 2 c + 1. With up to 4 heads only lanes c < 2 have any.
struct Outputs {
  float4* lane;  // of chunk 0
  int stride;    // from chunk to chunk
  bool held;

  __device__ __forceinline__ Outputs(float4* all, int log_lanes, int own)
      : lane(all + (log_lanes == 5 ? own : (own >> 2) * 2 + (own & 1))),
        stride(1 << log_lanes),
        held(log_lanes == 5 || (own & 3) < 2) {}

  __device__ __forceinline__ void Add(int chunk, const float (&keep)[2],
                                      const float (&more)[4]) const {
    if (!held) return;
    float4 o = lane[chunk * stride];
    o.x = fmaf(o.x, keep[0], more[0]);
    o.y = fmaf(o.y, keep[1], more[1]);
    o.z = fmaf(o.z, keep[0], more[2]);
    o.w = fmaf(o.w, keep[1], more[3]);
    lane[chunk * stride] = o;
  }
};

// Outputs of 16 channels of int8 coefficients.
template <int kBlocks>
__device__ __forceinline__ void AddScaledOutputs(const uint8_t* small, const SmallBand& band, int i,
                                                 const BasisWeights<kBlocks>& w,
                                                 const float (&keep)[2], const Outputs& outputs,
                                                 int lane) {
  const int channel = kChunk * i + (lane >> 2);
  float acc[4] = {0, 0, 0, 0};
#pragma unroll
  for (int block = 0; block < BasisWeights<kBlocks>::kCount; ++block) {
#pragma unroll
    for (int half = 0; half < (kBlocks == 0 ? 1 : 2); ++half) {
      if (kBlocks > 0 && 16 * block + 8 * half >= band.coefficients) break;
      const int m = 16 * block + 8 * half + 2 * (lane & 3);
      const uint8_t* at = small + band.data + m * band.channels + channel;
      uint32_t x[2] = {0, 0}, y[2] = {0, 0};
      if (m < band.coefficients) {
        x[0] = at[0];
        x[1] = at[8];
      }
      if (m + 1 < band.coefficients) {
        y[0] = at[band.channels];
        y[1] = at[band.channels + 8];
      }
      // Bytes c + 128 as fp16 1024 + (c + 128) - 1152.
      const uint32_t a0 = SubF16((x[0] | y[0] << 16) ^ 0x64806480u, 0x64806480u);
      const uint32_t a1 = SubF16((x[1] | y[1] << 16) ^ 0x64806480u, 0x64806480u);
      MmaF16K8(acc, a0, a1, w.f16[block][half]);
    }
  }
  const uint8_t* at = small + band.scale + 2 * channel;
  const float first = LoadBf16(at);
  const float second = LoadBf16(at + 16);
  acc[0] *= first;
  acc[1] *= first;
  acc[2] *= second;
  acc[3] *= second;
  outputs.Add(band.first_chunk + i, keep, acc);
}

// Outputs of 16 channels of bf16 coefficients.
template <int kBlocks>
__device__ __forceinline__ void AddPlainOutputs(const uint8_t* small, const SmallBand& band, int i,
                                                const BasisWeights<kBlocks>& w,
                                                const float (&keep)[2], const Outputs& outputs,
                                                int lane) {
  const int channel = kChunk * i + (lane >> 2);
  float acc[4] = {0, 0, 0, 0};
#pragma unroll
  for (int block = 0; block < BasisWeights<kBlocks>::kCount; ++block) {
#pragma unroll
    for (int half = 0; half < (kBlocks == 0 ? 1 : 2); ++half) {
      if (kBlocks > 0 && 16 * block + 8 * half >= band.coefficients) break;
      const int m = 16 * block + 8 * half + 2 * (lane & 3);
      const uint8_t* at = small + band.data + 2 * (m * band.channels + channel);
      uint32_t x[2] = {0, 0}, y[2] = {0, 0};
      if (m < band.coefficients) {
        x[0] = LoadU16(at);
        x[1] = LoadU16(at + 16);
      }
      if (m + 1 < band.coefficients) {
        y[0] = LoadU16(at + 2 * band.channels);
        y[1] = LoadU16(at + 2 * band.channels + 16);
      }
      const uint32_t a0 = x[0] | y[0] << 16;
      const uint32_t a1 = x[1] | y[1] << 16;
      MmaBf16K8(acc, a0, a1, w.high[block][half]);
      MmaBf16K8(acc, a0, a1, w.low[block][half]);
    }
  }
  outputs.Add(band.first_chunk + i, keep, acc);
}

template <int kBlocks>
__device__ __forceinline__ void AddSpectralOutputs(const uint8_t* small, const SmallBand* bands,
                                                   int count, const BasisWeights<kBlocks>& w,
                                                   const float (&keep)[2], const Outputs& outputs,
                                                   int lane) {
#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    const SmallBand band = bands[n];
    if (band.kind == kSpectral8) {
#pragma unroll 2
      for (int i = 0; i < band.chunks; ++i) {
        AddScaledOutputs<kBlocks>(small, band, i, w, keep, outputs, lane);
      }
    } else if (band.kind == kSpectral16) {
#pragma unroll 1
      for (int i = 0; i < band.chunks; ++i) {
        AddPlainOutputs<kBlocks>(small, band, i, w, keep, outputs, lane);
      }
    }
  }
}

template <int kBits, int kLogS>
__device__ __forceinline__ void OutputWords(float (&acc)[4], const uint8_t* slot,
                                            SegmentShape<kLogS> shape, int unit, int lane,
                                            const WeightTiles& weights) {
  constexpr uint32_t kEven = kBits == 2 ? 0x00030003u : 0x000f000fu;
  constexpr uint32_t kOdd = kEven << 4;
  const int r = lane >> 2;
  const int quad = 8 * unit + 2 * (lane & 3);
  const uint4 a = LoadNibbles<true, kBits>(slot, shape, r, quad);
  const uint4 b = LoadNibbles<true, kBits>(slot, shape, r + 8, quad);
  const uint4 a_next = LoadNibbles<true, kBits>(slot, shape, r, quad + 1);
  const uint4 b_next = LoadNibbles<true, kBits>(slot, shape, r + 8, quad + 1);
  float odd[4] = {0, 0, 0, 0};  // two sums, so that no product waits for the one before
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t x = Component(a, i), y = Component(b, i);
    const uint32_t u = Component(a_next, i), v = Component(b_next, i);
    MmaF16(acc, x & kEven, y & kEven, u & kEven, v & kEven, weights[4 * i][0], weights[4 * i][1]);
    MmaF16(odd, x & kOdd, y & kOdd, u & kOdd, v & kOdd, weights[4 * i + 1][0],
           weights[4 * i + 1][1]);
    MmaF16(acc, (x >> 8) & kEven, (y >> 8) & kEven, (u >> 8) & kEven, (v >> 8) & kEven,
           weights[4 * i + 2][0], weights[4 * i + 2][1]);
    MmaF16(odd, (x >> 8) & kOdd, (y >> 8) & kOdd, (u >> 8) & kOdd, (v >> 8) & kOdd,
           weights[4 * i + 3][0], weights[4 * i + 3][1]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) acc[i] += odd[i];
}

// `place(row, piece)`: where bytes 16 piece .. + 15 of a channel's bytes of this unit are.
template <int kRun, typename Place>
__device__ __forceinline__ void OutputBytes(float (&acc)[4], Place place, int lane,
                                            const WeightTiles& weights) {
  const int r = lane >> 2;
  const int c = lane & 3;
  uint2 words[4][2];  // k = 2 kRun, 2 kRun + 1, + 4, + 5; rows r, r + 8
#pragma unroll
  for (int run = 0; run < 4; ++run) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int piece = 2 * RunOfBytes(true, kRun, run) + (c >> 1);
      words[run][row] = *reinterpret_cast<const uint2*>(place(r + 8 * row, piece) + (c & 1) * 8);
    }
  }
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    MmaF16(acc, BytePair<false>(words[0][0].x, words[2][0].x, b),
           BytePair<false>(words[0][1].x, words[2][1].x, b),
           BytePair<false>(words[0][0].y, words[2][0].y, b),
           BytePair<false>(words[0][1].y, words[2][1].y, b), weights[4 * b + 2 * kRun][0],
           weights[4 * b + 2 * kRun][1]);
    MmaF16(acc, BytePair<true>(words[1][0].x, words[3][0].x, b),
           BytePair<true>(words[1][1].x, words[3][1].x, b),
           BytePair<true>(words[1][0].y, words[3][0].y, b),
           BytePair<true>(words[1][1].y, words[3][1].y, b), weights[4 * b + 2 * kRun + 1][0],
           weights[4 * b + 2 * kRun + 1][1]);
  }
}

// Tokens k = kRun and kRun + 4.
template <int kRun>
__device__ __forceinline__ void OutputHalves(float (&acc)[4], const uint8_t* slot, int lane,
                                             const WeightTiles& weights) {
  const int r = lane >> 2;
  const int c = lane & 3;
  uint4 words[2][2];  // [k, k + 4][rows r, r + 8]
#pragma unroll
  for (int run = 0; run < 2; ++run) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int piece = (4 * run + c) ^ HalfSwizzle(true, r);
      words[run][row] = *reinterpret_cast<const uint4*>(slot + (r + 8 * row) * 128 + (piece << 4));
    }
  }
  float own[4] = {0, 0, 0, 0};
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    const int halves = b % 2 == 0 ? 0x5410 : 0x7632;
    uint32_t a[4];
#pragma unroll
    for (int next = 0; next < 2; ++next) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const uint32_t pair = __byte_perm(Component(words[0][row], 2 * next + b / 2),
                                          Component(words[1][row], 2 * next + b / 2), halves);
        a[2 * next + row] = kRun % 2 == 1 ? Times16(pair) : pair;
      }
    }
    uint32_t high[2], low[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 p = UnpackF16(weights[4 * b + kRun][i]);
      high[i] = PackBf16(p.x, p.y);
      low[i] = PackBf16(p.x - LowBf16(high[i]), p.y - HighBf16(high[i]));
    }
    MmaBf16(own, a[0], a[1], a[2], a[3], high[0], high[1]);
    MmaBf16(own, a[0], a[1], a[2], a[3], low[0], low[1]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) acc[i] += own[i];
}

// Adds one resident step to the outputs. `sum`: of the unit's weights.
template <int kLogS>
__device__ __forceinline__ void OutputStep(const Step& step, const uint8_t* slot,
                                           const uint8_t* small, SegmentShape<kLogS> shape,
                                           int unit, int lane, const WeightTiles& weights,
                                           const float (&sum)[2], const float (&keep)[2],
                                           const Outputs& outputs) {
  float acc[4] = {0, 0, 0, 0};
  // Former outputs are reduced once, in the chunk's first step.
  const float keep_once[2] = {step.run == 0 ? keep[0] : 1.0f, step.run == 0 ? keep[1] : 1.0f};
  if (step.kind == 16) {
    switch (step.run) {
      case 0:
        OutputHalves<0>(acc, slot, lane, weights);
        break;
      case 1:
        OutputHalves<1>(acc, slot, lane, weights);
        break;
      case 2:
        OutputHalves<2>(acc, slot, lane, weights);
        break;
      default:
        OutputHalves<3>(acc, slot, lane, weights);
        break;
    }
    return outputs.Add(step.chunk, keep_once, acc);
  }
  if (step.kind == 4) {
    OutputWords<4>(acc, slot, shape, unit, lane, weights);
  } else if (step.kind == 8) {
    // In the slot, k and k + 4 are two runs apart.
    const auto place = [&](int row, int piece) {
      const int local = (piece & 3) + (piece & 8) / 2;
      return slot + row * 128 + ((local ^ ByteSwizzle(row)) << 4);
    };
    if (step.run == 0) {
      OutputBytes<0>(acc, place, lane, weights);
    } else {
      OutputBytes<1>(acc, place, lane, weights);
    }
  } else if (step.kind == 3) {
    OutputWords<3>(acc, slot, shape, unit, lane, weights);
  } else {
    OutputWords<2>(acc, slot, shape, unit, lane, weights);
  }
  const int r = lane >> 2;
  const bool first = step.run == 0;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const float scale = LoadBf16(small + step.scale + 2 * r + 16 * row) * 16777216.0f;
    const float offset = first ? LoadBf16(small + step.zero + 2 * r + 16 * row) : 0.0f;
    acc[2 * row] = fmaf(acc[2 * row], scale, offset * sum[0]);
    acc[2 * row + 1] = fmaf(acc[2 * row + 1], scale, offset * sum[1]);
  }
  outputs.Add(step.chunk, keep_once, acc);
}

}  // namespace fourierkv::kernels
