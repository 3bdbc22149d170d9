// Units of uniform heads (attention_program.h): the same arithmetic as attention_scores.cuh and
// attention_outputs.cuh, but everything a part needs is copied at once, and nothing is looked up
// step by step.

#pragma once

#include <cstdint>

#include "kernels/attention_copies.cuh"
#include "kernels/attention_outputs.cuh"
#include "kernels/attention_program.h"
#include "kernels/attention_scores.cuh"
#include "kernels/mma.cuh"

namespace fourierkv::kernels {

// Copies a part: small data to `to`, residents to `to` + `data`, whose pieces of 16 bytes change
// places within 128 bytes so that lanes read them without bank conflicts.
template <int kBits, bool kValues>
__device__ __forceinline__ void CopyUniform(uint32_t to, int data, const uint8_t* payload,
                                            const UniformPart& part, int lane) {
  const uint8_t* from = payload + part.source + 16 * lane;
#pragma unroll 1
  for (int at = 16 * lane; at < part.small_bytes; at += 512) {
    CopyAsync16(to + at, payload + part.source + at);
  }
  from += part.small_bytes;
  constexpr int kRowBytes = kUnitTokens * kBits / 8;
  const int bytes = part.residents * kRowBytes - 16 * lane;  // from this lane's first piece on
  const int row = lane >> 3;                                 // of 128 bytes
  const uint32_t first = to + data + row * 128;
  const int place =
      kBits == 4 ? (lane & 7) ^ WordSwizzle(kValues, row) : (lane & 7) ^ ByteSwizzle(lane >> 4);
#pragma unroll 1
  for (int at = 0; at < bytes; at += 2048) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // With 8 bits, 512 bytes are two channels: the swizzle of the next two is another.
      const int own = kBits == 8 && i % 2 == 1 ? place ^ 4 : place;
      if (at + 512 * i < bytes) CopyAsync16(first + at + 512 * i + (own << 4), from + at + 512 * i);
    }
  }
}

// Where bytes 16 piece .. + 15 of a resident channel are.
struct UniformPlace {
  const uint8_t* data;

  __device__ __forceinline__ const uint8_t* operator()(int row, int piece) const {
    return data + row * 256 + ((piece ^ ByteSwizzle(row)) << 4);
  }
};

// Two chunks of C_K q at once, so that loads of one hide behind the other.
struct CoefficientChunk {
  uint32_t a0, a2, b0, b1;
};

__device__ __forceinline__ CoefficientChunk LoadCoefficientChunk(uint32_t small, uint32_t row,
                                                                 uint32_t shift, bool valid,
                                                                 const float4* queries, int i,
                                                                 int lane, int channels) {
  const float4 q = queries[i * 32 + lane];
  uint32_t x, y, low, high;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];"
               : "=r"(x), "=r"(y)
               : "r"(small + 32 * i + 8 * (lane & 3)));
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(low) : "r"(row + kChunk * i));
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(high) : "r"(row + kChunk * i + 4));
  float scale[4] = {LowBf16(x), HighBf16(x), LowBf16(y), HighBf16(y)};
  if (kChunk * (i + 1) > channels) {
    // Behind the last scale is anything, even NaN.
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (kChunk * i + 4 * (lane & 3) + k >= channels) scale[k] = 0;
    }
  }
  CoefficientChunk chunk;
  chunk.b0 = PackF16(q.x * scale[0], q.y * scale[1]);
  chunk.b1 = PackF16(q.z * scale[2], q.w * scale[3]);
  uint32_t bytes = __funnelshift_r(low, high, shift);
  bytes = valid ? bytes ^ 0x80808080u : 0x80808080u;
  chunk.a0 = SubF16(__byte_perm(bytes, 0x64646464u, 0x4140), 0x64806480u);
  chunk.a2 = SubF16(__byte_perm(bytes, 0x64646464u, 0x4342), 0x64806480u);
  return chunk;
}

// Largest of this lane's share of `count` scales, as bf16 bits.
__device__ __forceinline__ uint32_t LargestScale(const uint8_t* scales, int count, int lane) {
  uint32_t largest = 0;
#pragma unroll 2
  for (int j = lane; j < count; j += 32) largest = max(largest, LoadU16(scales + 2 * j));
  return largest;
}

// Scales of 2^7 or more, and of less than 2^-7 if there are no larger ones, would not do as fp16:
// then all scales of the part are divided by a power of two, in place. Returns its exponent; nearly
// always 0.
__device__ __forceinline__ int ReduceScales(uint8_t* memory, const UniformPart& part, int lane) {
  const uint32_t largest =
      __reduce_max_sync(~0u, max(LargestScale(memory, part.channels, lane),
                                 LargestScale(memory + part.scale, part.residents, lane)));
  if (UsualScale(largest)) return 0;
  const int reduced = ClampExponent(static_cast<int>(largest >> 7) - 126 - 7);
  const float factor = PowerOfTwo(-reduced);
  for (int n = lane; n < part.channels + part.residents; n += 32) {
    auto* at = reinterpret_cast<uint16_t*>(
        memory + (n < part.channels ? 2 * n : part.scale + 2 * (n - part.channels)));
    const float scale = __uint_as_float(static_cast<uint32_t>(*at) << 16) * factor;
    *at = static_cast<uint16_t>(__float_as_uint(scale) >> 16);
  }
  __syncwarp();
  return reduced;
}

// Scores of a unit; as ScoreStart and ScoreStep. acc is times 2^(kUsualExponent - 24 - e), where e
// is what is returned; `mean`, in units of scores, is what all tokens have in common.
template <int kBits>
__device__ __forceinline__ int ScoreUniform(ScoreTiles& acc, uint8_t* memory, int data,
                                            const UniformPart& part, const float4* queries,
                                            float constant, const uint8_t* basis, int lane,
                                            float (&mean)[2]) {
  const int r = lane >> 2;
  const int c = lane & 3;
  const int reduced = ReduceScales(memory, part, lane);

  // Coefficients: rows are m, the channels of lane column c are 4 c .. 4 c + 3 of a chunk.
  const uint32_t small = SharedAddress(memory);
  const bool valid = r < part.coefficients;
  const uint32_t bytes = small + part.data + (valid ? r * part.channels : 0) + 4 * c;
  const uint32_t row = bytes & ~3u;
  const uint32_t shift = 8 * (bytes & 3);
  float even[4] = {0, 0, 0, 0};
  float odd[4] = {0, 0, 0, 0};
  int i = 0;
#pragma unroll 1
  for (; i + 1 < part.chunks; i += 2) {
    const auto x = LoadCoefficientChunk(small, row, shift, valid, queries, i, lane, part.channels);
    const auto y =
        LoadCoefficientChunk(small, row, shift, valid, queries, i + 1, lane, part.channels);
    MmaF16(even, x.a0, 0, x.a2, 0, x.b0, x.b1);
    MmaF16(odd, y.a0, 0, y.a2, 0, y.b0, y.b1);
  }
  if (i < part.chunks) {
    const auto x = LoadCoefficientChunk(small, row, shift, valid, queries, i, lane, part.channels);
    MmaF16(even, x.a0, 0, x.a2, 0, x.b0, x.b1);
  }
  even[0] += odd[0];
  even[1] += odd[1];
  const float unit = PowerOfTwo(kUsualExponent - 24);
  const float to_mean = constant * PowerOfTwo(reduced);
  mean[0] = __shfl_sync(~0u, even[0], c) * to_mean;
  mean[1] = __shfl_sync(~0u, even[1], c) * to_mean;
  const float zero[4] = {0, 0, 0, 0};
  const uint32_t operand = Transpose8x8(r == 0 ? 0u : PackF16(even[0] * unit, even[1] * unit));
  const auto* table = reinterpret_cast<const uint2*>(basis) + lane;
#pragma unroll
  for (int t = 0; t < 16; ++t) {
    const uint2 a = __ldg(table + 32 * t);
    MmaF16K8(acc[t], a.x, a.y, operand, zero);
  }

  // Residents; offsets do not depend on the token: float takes care of them, for head r.
  float offsets = 0;
#pragma unroll 1
  for (int n = 0; n < part.resident_chunks; ++n) {
    const float4 q = queries[(part.chunks + n) * 32 + lane];
    const uint8_t* at = memory + part.scale + 2 * (kChunk * n + c);
    const uint8_t* zero_at = at + 2 * part.residents;
    float scale[4], offset[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      scale[x] = LoadBf16(at + 8 * x);
      offset[x] = LoadBf16(zero_at + 8 * x);
    }
    if (kChunk * (n + 1) > part.residents) {
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        if (kChunk * n + c + 4 * x >= part.residents) scale[x] = offset[x] = 0;
      }
    }
    offsets = fmaf(q.x, offset[0], fmaf(q.y, offset[1], offsets));
    offsets = fmaf(q.z, offset[2], fmaf(q.w, offset[3], offsets));
    const uint32_t b0 = PackF16(q.x * scale[0], q.y * scale[1]);
    const uint32_t b1 = PackF16(q.z * scale[2], q.w * scale[3]);
    const uint8_t* rows = memory + data + n * kChunk * kUnitTokens * kBits / 8;
    if constexpr (kBits == 4) {
      ScoreWords<4>(acc, rows, SegmentShape<8>{8}, 0, lane, b0, b1);
    } else {
      ScoreBytes<0>(acc, UniformPlace{rows}, lane, b0, b1);
      ScoreBytes<1>(acc, UniformPlace{rows}, lane, b0, b1);
    }
  }
  offsets += __shfl_xor_sync(~0u, offsets, 1);
  offsets += __shfl_xor_sync(~0u, offsets, 2);
  constexpr float kFromResidentQueries = 1.0f / (1 << kUsualExponent);
  mean[0] = fmaf(__shfl_sync(~0u, offsets, 8 * c), kFromResidentQueries, mean[0]);
  mean[1] = fmaf(__shfl_sync(~0u, offsets, 8 * c + 4), kFromResidentQueries, mean[1]);
  return reduced;
}

// Outputs of kCount chunks of coefficients: all loads, then all products, then all sums.
template <int kCount>
__device__ __forceinline__ void CoefficientOutputs(const uint8_t* memory, const UniformPart& part,
                                                   int first, uint32_t weights,
                                                   const float (&keep)[2], const Outputs& outputs,
                                                   int lane) {
  const int m = 2 * (lane & 3);
  const int channel = kChunk * first + (lane >> 2);
  const uint8_t* at = memory + part.data + m * part.channels + channel;
  const uint8_t* next = at + part.channels;
  const uint8_t* scales = memory + 2 * channel;
  uint32_t x[kCount][2], y[kCount][2];
  float scale[kCount][2];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      x[i][row] = at[kChunk * i + 8 * row];
      y[i][row] = next[kChunk * i + 8 * row];
      scale[i][row] = LoadBf16(scales + 2 * (kChunk * i + 8 * row));
    }
  }
  float acc[kCount][4];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    uint32_t a[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      a[row] = SubF16(__byte_perm(x[i][row], y[i][row], 0x5410) ^ 0x64806480u, 0x64806480u);
    }
    const float zero[4] = {0, 0, 0, 0};
    MmaF16K8(acc[i], a[0], a[1], weights, zero);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    acc[i][0] *= scale[i][0];
    acc[i][1] *= scale[i][0];
    acc[i][2] *= scale[i][1];
    acc[i][3] *= scale[i][1];
    outputs.Add(first + i, keep, acc[i]);
  }
}

// basis^T p of 8 columns as a B operand, and the unit's sum, which it adds to the softmax's. Tokens
// t = 32 k + q: first sums over q and, turned by 128 tokens, over k and k + 4, of cosine and
// quadrature, with one operand for all k; then these are turned by 32 k tokens, in float.
__device__ __forceinline__ uint32_t PhaseWeights(const WeightTiles& weights, const uint8_t* phases,
                                                 float constant, int lane, Softmax& softmax,
                                                 float (&sum)[2]) {
  const int r = lane >> 2;
  const auto* table = reinterpret_cast<const uint4*>(phases) + lane;
  float u[4][4] = {};  // [k]: cosine, then quadrature, of heads 2 c, 2 c + 1
#pragma unroll
  for (int b = 0; b < 4; ++b) {
    const uint4 a = __ldg(table + 32 * b);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      MmaF16(u[k], a.x, a.y, a.z, a.w, weights[4 * b + k][0], weights[4 * b + k][1]);
    }
  }
  const auto* turns = reinterpret_cast<const float4*>(phases + 2048) + 2 * r;
  const float4 first = __ldg(turns);
  const float4 last = __ldg(turns + 1);
  float w[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    w[i] = fmaf(u[0][i], first.x, -u[0][2 + i] * first.y);
    w[i] = fmaf(u[1][i], first.z, fmaf(-u[1][2 + i], first.w, w[i]));
    w[i] = fmaf(u[2][i], last.x, fmaf(-u[2][2 + i], last.y, w[i]));
    w[i] = fmaf(u[3][i], last.z, fmaf(-u[3][2 + i], last.w, w[i]));
    sum[i] = __shfl_sync(~0u, w[i], lane & 3);
    softmax.sum[i] += sum[i];
  }
  const float own = r == 0 ? constant : 1.0f;
  return Transpose8x8(PackF16(w[0] * own, w[1] * own));
}

template <int kBits>
__device__ __forceinline__ void AddUniformOutputs(const uint8_t* memory, int data,
                                                  const UniformPart& part, float constant,
                                                  const uint8_t* phases, const WeightTiles& weights,
                                                  Softmax& softmax, const float (&keep)[2],
                                                  const Outputs& outputs, int lane) {
  float sum[2];
  uint32_t own = PhaseWeights(weights, phases, constant, lane, softmax, sum);
  // Weights of coefficients that are not there are zero, whatever bytes stand for them.
  const int m = 2 * (lane & 3);
  if (m + 1 >= part.coefficients) own = m < part.coefficients ? own & 0xffffu : 0u;
  int i = 0;
#pragma unroll 1
  for (; i + 1 < part.chunks; i += 2) {
    CoefficientOutputs<2>(memory, part, i, own, keep, outputs, lane);
  }
  if (i < part.chunks) CoefficientOutputs<1>(memory, part, i, own, keep, outputs, lane);

  const int r = lane >> 2;
#pragma unroll 1
  for (int n = 0; n < part.resident_chunks; ++n) {
    float acc[4] = {0, 0, 0, 0};
    const uint8_t* rows = memory + data + n * kChunk * kUnitTokens * kBits / 8;
    if constexpr (kBits == 4) {
      OutputWords<4>(acc, rows, SegmentShape<8>{8}, 0, lane, weights);
    } else {
      OutputBytes<0>(acc, UniformPlace{rows}, lane, weights);
      OutputBytes<1>(acc, UniformPlace{rows}, lane, weights);
    }
    const uint8_t* at = memory + part.scale + 2 * (kChunk * n + r);
    const uint8_t* zero_at = at + 2 * part.residents;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float scale = LoadBf16(at + 16 * row) * 16777216.0f;
      const float offset = LoadBf16(zero_at + 16 * row);
      acc[2 * row] = fmaf(acc[2 * row], scale, offset * sum[0]);
      acc[2 * row + 1] = fmaf(acc[2 * row + 1], scale, offset * sum[1]);
    }
    outputs.Add(part.chunks + n, keep, acc);
  }
}

}  // namespace fourierkv::kernels
