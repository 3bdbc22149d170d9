// Attention over a page of exact tokens, as a unit of the same softmax.

#pragma once

#include <cstdint>

#include "kernels/attention_outputs.cuh"
#include "kernels/fourier_attention.h"
#include "kernels/mma.cuh"

namespace fourierkv::kernels {

// A page is worked on in blocks of 16 tokens x 64 channels, a step each: keys token block by token
// block, then values channel block by channel block. A block is copied in rows of 128 bytes, whose
// pieces of 8 channels are permuted so that lanes read without bank conflicts: keys 2 rows x 4
// pieces at once, values 4 rows x 2 pieces.
struct PageShape {
  int head_dim;
  int blocks;  // of 64 channels

  __device__ __forceinline__ explicit PageShape(int d) : head_dim(d), blocks((d + 63) / 64) {}
  __device__ __forceinline__ int steps() const { return 8 * blocks; }
};

__device__ __forceinline__ int PagePlace(bool values, int row, int piece) {
  return 128 * row + ((piece ^ (values ? row & 6 : (row & 1) << 2)) << 4);
}

__device__ __forceinline__ void CopyPageStep(uint32_t slot, const uint16_t* keys,
                                             const uint16_t* values, int tokens, int step,
                                             const PageShape& shape, int lane) {
  const int key_steps = 4 * shape.blocks;
  const bool is_value = step >= key_steps;
  const int token_block = is_value ? (step - key_steps) & 3 : step / shape.blocks;
  const int block = is_value ? (step - key_steps) >> 2 : step % shape.blocks;
  const uint16_t* const part = is_value ? values : keys;
  const int piece = lane & 7;
  const int channel = 64 * block + 8 * piece;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = (lane >> 3) + 4 * i;
    const int token = 16 * token_block + row;
    const bool valid = token < tokens && channel < shape.head_dim;
    CopyAsync16(slot + PagePlace(is_value, row, piece),
                valid ? part + token * shape.head_dim + channel : part, !valid);
  }
}

template <ElementType kType>
__device__ __forceinline__ void MmaOf(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                      uint32_t a3, uint32_t b0, uint32_t b1) {
  if (kType == ElementType::kBf16) {
    MmaBf16(d, a0, a1, a2, a3, b0, b1);
  } else {
    MmaF16(d, a0, a1, a2, a3, b0, b1);
  }
}

// A pair rounded to the page's type, and what is left of it.
template <ElementType kType>
__device__ __forceinline__ void SplitPair(float x, float y, uint32_t* high, uint32_t* low) {
  if (kType == ElementType::kBf16) {
    *high = PackBf16(x, y);
    *low = PackBf16(x - LowBf16(*high), y - HighBf16(*high));
  } else {
    *high = PackF16(x, y);
    const float2 rounded = UnpackF16(*high);
    *low = PackF16(x - rounded.x, y - rounded.y);
  }
}

// Queries as operands for keys: [2 block + x][lane]: four pairs, then what is left of them.
template <ElementType kType>
__device__ __forceinline__ void ScoreKeyBlock(float (&acc)[4], const uint8_t* slot,
                                              const uint4* queries, int block, int lane) {
  const int r = lane >> 2;
  const int c = lane & 3;
#pragma unroll
  for (int x = 0; x < 2; ++x) {
    // Channels 64 block + 32 x + 8 c .. + 7 of tokens r, r + 8.
    const uint4 a = *reinterpret_cast<const uint4*>(slot + PagePlace(false, r, 4 * x + c));
    const uint4 b = *reinterpret_cast<const uint4*>(slot + PagePlace(false, r + 8, 4 * x + c));
    const uint4 high = queries[((2 * block + x) * 2) * 32 + lane];
    const uint4 low = queries[((2 * block + x) * 2 + 1) * 32 + lane];
    MmaOf<kType>(acc, a.x, b.x, a.y, b.y, high.x, high.y);
    MmaOf<kType>(acc, a.z, b.z, a.w, b.w, high.z, high.w);
    MmaOf<kType>(acc, a.x, b.x, a.y, b.y, low.x, low.y);
    MmaOf<kType>(acc, a.z, b.z, a.w, b.w, low.z, low.w);
  }
}

// Weights of a page as operands: [token block][tokens 0-7, 8-15].
struct PageWeights {
  uint32_t high[4][2];
  uint32_t low[4][2];
};

// acc[token block]: scores of tokens r, r + 8 of heads 2 c, 2 c + 1.
template <ElementType kType>
__device__ __forceinline__ void WeighPage(const float (&acc)[4][4], const float (&factor)[2],
                                          int tokens, int lane, Softmax& softmax, float (&keep)[2],
                                          PageWeights& weights) {
  const int r = lane >> 2;
  float largest[2] = {kNoScore, kNoScore};
#pragma unroll
  for (int t = 0; t < 4; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (16 * t + r + 8 * (i >> 1) < tokens) {
        largest[i & 1] = fmaxf(largest[i & 1], acc[t][i] * factor[i & 1]);
      }
    }
  }
  largest[0] = MaxOverRows(largest[0]);
  largest[1] = MaxOverRows(largest[1]);
  RaiseMaxima(softmax, largest, keep);
  float sum[2] = {0, 0};
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    float p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool valid = 16 * t + r + 8 * (i >> 1) < tokens;
      p[i] = valid ? Exp2(fmaf(acc[t][i], factor[i & 1], -softmax.largest[i & 1])) : 0.0f;
      sum[i & 1] += p[i];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t high, low;
      SplitPair<kType>(p[2 * half], p[2 * half + 1], &high, &low);
      weights.high[t][half] = Transpose8x8(high);
      weights.low[t][half] = Transpose8x8(low);
    }
  }
  softmax.sum[0] += SumOverRows(sum[0]);
  softmax.sum[1] += SumOverRows(sum[1]);
}

// acc[w]: channels 8 r + 2 w (rows r) and 8 r + 2 w + 1 (rows r + 8) of the block.
template <ElementType kType>
__device__ __forceinline__ void OutputValueBlock(float (&acc)[4][4], const uint8_t* slot,
                                                 const uint32_t (&high)[2],
                                                 const uint32_t (&low)[2], int lane) {
  const int r = lane >> 2;
  const int c = lane & 3;
  // Channels 8 r .. + 7 of tokens 2 c, 2 c + 1, 2 c + 8, 2 c + 9.
  uint4 y[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = 2 * c + (i & 1) + 8 * (i >> 1);
    y[i] = *reinterpret_cast<const uint4*>(slot + PagePlace(true, row, r));
  }
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const uint32_t a0 = __byte_perm(Component(y[0], w), Component(y[1], w), 0x5410);
    const uint32_t a1 = __byte_perm(Component(y[0], w), Component(y[1], w), 0x7632);
    const uint32_t a2 = __byte_perm(Component(y[2], w), Component(y[3], w), 0x5410);
    const uint32_t a3 = __byte_perm(Component(y[2], w), Component(y[3], w), 0x7632);
    MmaOf<kType>(acc[w], a0, a1, a2, a3, high[0], high[1]);
    MmaOf<kType>(acc[w], a0, a1, a2, a3, low[0], low[1]);
  }
}

}  // namespace fourierkv::kernels
