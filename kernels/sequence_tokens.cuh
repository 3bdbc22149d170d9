// What middle and exact items of the published form's attention share: how a warp gets its data,
// its queries and its weights. A warp takes panels of 64 tokens; lane = 4 g + t.

#pragma once

#include <cstdint>

#include "kernels/dependent_launch.cuh"
#include "kernels/mma.cuh"
#include "kernels/sequence_attention.h"
#include "kernels/sequence_plan.h"

namespace fourierkv::kernels {

inline constexpr float kNoScore = -3.0e38f;  // finite, so that differences are numbers
inline constexpr float kLog2e = 1.44269504f;

// Lane (g, .) has tokens TokenRow(g) .. + 7 of a panel as rows of scores. Even and odd g are 32
// apart, so that the transpose, which pairs them, leaves lane (., t) with tokens 8 t + j and
// 32 + 8 t + j: 16 bytes each of a channel of V.
__device__ __forceinline__ int TokenRow(int g) { return 8 * (g >> 1) + 32 * (g & 1); }

__device__ __forceinline__ float LoadValue(const void* values, int64_t i, ElementType type,
                                           bool is_float) {
  if (is_float) return static_cast<const float*>(values)[i];
  const uint32_t bits = static_cast<const uint16_t*>(values)[i];
  return type == ElementType::kBf16 ? LowBf16(bits) : UnpackF16(bits).x;
}

__device__ __forceinline__ uint32_t LowHalves(uint32_t a, uint32_t b) {
  return __byte_perm(a, b, 0x5410);
}
__device__ __forceinline__ uint32_t HighHalves(uint32_t a, uint32_t b) {
  return __byte_perm(a, b, 0x7632);
}

// Data arrives in tiles of 2 KiB, four 16-byte vectors a lane, several ahead of what is worked on.
inline constexpr int kTileBytes = 4 * 32 * 16;
inline constexpr int kStages = 4;

// Source::Issue(to) starts the copies of the next tile to `to`, or none at the end.
template <typename Source>
class TileRing {
 public:
  __device__ __forceinline__ TileRing(uint8_t* memory, Source& source)
      : memory_(memory), address_(SharedAddress(memory)), source_(source) {
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) {
      source_.Issue(address_ + i * kTileBytes);
      CommitCopies();
    }
  }

  // Four vectors of the tile that was issued first, at the given places; starts the copies of one
  // more, over the tile that was read before.
  __device__ __forceinline__ void Next(const int (&places)[4], uint4 (&tile)[4]) {
    WaitForCopies<kStages - 2>();
    __syncwarp();
    source_.Issue(address_ + write_);
    CommitCopies();
    write_ = write_ == (kStages - 1) * kTileBytes ? 0 : write_ + kTileBytes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      tile[i] = *reinterpret_cast<const uint4*>(memory_ + read_ + places[i]);
    }
    read_ = read_ == (kStages - 1) * kTileBytes ? 0 : read_ + kTileBytes;
  }

 private:
  const uint8_t* memory_;
  uint32_t address_;
  Source& source_;
  int read_ = 0;
  int write_ = (kStages - 1) * kTileBytes;
};

// The query heads that an item is for, in units of log2.
struct Queries {
  const SequenceAttentionParams* p;
  int64_t first;  // query head: batch index * query_heads + ...
  int group;

  __device__ __forceinline__ float Load(int query, int channel) const {
    const float value =
        LoadValue(p->q, (first + query) * p->head_dim + channel, p->dtype, p->float_io);
    return value * (p->scale * kLog2e);
  }
};

// Four channels of a query as a B operand: (0, 1), (2, 3), then what rounding them left.
__device__ __forceinline__ uint4 SplitBf16(const float (&x)[4]) {
  uint4 b;
  b.x = PackBf16(x[0], x[1]);
  b.y = PackBf16(x[2], x[3]);
  b.z = PackBf16(x[0] - LowBf16(b.x), x[1] - HighBf16(b.x));
  b.w = PackBf16(x[2] - LowBf16(b.y), x[3] - HighBf16(b.y));
  return b;
}
__device__ __forceinline__ uint4 SplitF16(const float (&x)[4]) {
  uint4 b;
  b.x = PackF16(x[0], x[1]);
  b.y = PackF16(x[2], x[3]);
  const float2 low = UnpackF16(b.x);
  const float2 high = UnpackF16(b.y);
  b.z = PackF16(x[0] - low.x, x[1] - low.y);
  b.w = PackF16(x[2] - high.x, x[3] - high.y);
  return b;
}

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

// Scores of a panel: [m]: token TokenRow(g) + 2 m of queries 2 t, 2 t + 1, then the next token of
// both. kColumns blocks of 8 queries.
template <int kColumns>
using Scores = float[kColumns][4][4];

// Softmax of an item so far, for queries 8 column + 2 t + (0, 1). Sums are of this lane's tokens.
template <int kColumns>
class Softmax {
 public:
  __device__ __forceinline__ Softmax() {
#pragma unroll
    for (int i = 0; i < kColumns * 2; ++i) {
      maximum[i / 2][i % 2] = kNoScore;
      sum[i / 2][i % 2] = 0;
    }
  }

  // Turns the scores of a panel, whose first `valid` tokens exist, into weights as B operands for
  // tokens: [j]: (8 t + j, 32 + 8 t + j) of query g, binary16. True if what was added up before
  // counts `keep` times from now on.
  __device__ __forceinline__ bool Weigh(Scores<kColumns>& s, int valid, int lane,
                                        float (&keep)[kColumns][2],
                                        uint32_t (&weights)[kColumns][8]) {
    bool raised = false;
    if (valid < kPanelTokens) {
      const int mine = valid - TokenRow(lane >> 2);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          if (2 * (i / 4) + i % 4 / 2 >= mine) s[c][i / 4][i % 4] = -INFINITY;
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float largest = fmaxf(s[c][0][i], s[c][0][2 + i]);
#pragma unroll
        for (int m = 1; m < 4; ++m) largest = fmaxf(largest, fmaxf(s[c][m][i], s[c][m][2 + i]));
        largest = fmaxf(maximum[c][i], MaxOverRows(largest));
        keep[c][i] = Exp2(maximum[c][i] - largest);
        raised |= maximum[c][i] != largest;
        maximum[c][i] = largest;
        const float shift = static_cast<float>(kWeightBits) - largest;
        float added = 0;
#pragma unroll
        for (int m = 0; m < 4; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float weight = Exp2(s[c][m][2 * half + i] + shift);
            s[c][m][2 * half + i] = weight;
            added += weight;
          }
        }
        sum[c][i] = sum[c][i] * keep[c][i] + added;
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        weights[c][j] =
            Transpose8x8(PackF16(s[c][j / 2][2 * (j % 2)], s[c][j / 2][2 * (j % 2) + 1]));
      }
    }
    return __any_sync(~0u, raised);
  }

  // To the workspace, at [G] of the item.
  __device__ __forceinline__ void Store(float2* to, int group, int lane) {
#pragma unroll
    for (int i = 0; i < kColumns * 2; ++i) {
      const float total = SumOverRows(sum[i / 2][i % 2]);
      const int query = 8 * (i / 2) + 2 * (lane & 3) + i % 2;
      if (lane < 4 && query < group) to[query] = make_float2(maximum[i / 2][i % 2], total);
    }
  }

  float maximum[kColumns][2];
  float sum[kColumns][2];
};

// Binary16 weights as sums of two bf16, which is exact.
template <int kColumns>
__device__ __forceinline__ void SplitWeights(const uint32_t (&weights)[kColumns][8],
                                             uint32_t (&high)[kColumns][8],
                                             uint32_t (&low)[kColumns][8]) {
#pragma unroll
  for (int i = 0; i < kColumns * 8; ++i) {
    const float2 w = UnpackF16(weights[i / 8][i % 8]);
    const uint32_t h = PackBf16(w.x, w.y);
    high[i / 8][i % 8] = h;
    low[i / 8][i % 8] = PackBf16(w.x - LowBf16(h), w.y - HighBf16(h));
  }
}

// Results of one 16 x 8 tile whose columns are queries, when their maxima were raised.
__device__ __forceinline__ void Rescale(float (&tile)[4], const float (&keep)[2]) {
  tile[0] *= keep[0];
  tile[1] *= keep[1];
  tile[2] *= keep[0];
  tile[3] *= keep[1];
}

// A tile's rows first + g, first + 8 + g to to[query * stride + row].
__device__ __forceinline__ void StoreTile(const float (&tile)[4], float* to, int64_t stride,
                                          int first_row, int rows, int column, int group,
                                          int lane) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = first_row + (lane >> 2) + 8 * (i / 2);
    const int query = 8 * column + 2 * (lane & 3) + i % 2;
    if (query < group && row < rows) to[query * stride + row] = tile[i];
  }
}

}  // namespace fourierkv::kernels
