// One warp's item of exact tokens: attention as it always was.

#pragma once

#include <cstdint>

#include "kernels/sequence_tokens.cuh"

namespace fourierkv::kernels {

// Exact tokens: of each panel tiles of 16 rows x 32 channels of K, then of 16 tokens x 64 channels
// of V.
template <int kDim>
struct ExactSource {
  static constexpr int kKeyTiles = kDim / 32 * 2;
  static constexpr int kTiles = kKeyTiles + (kDim + 63) / 64 * 4;
  const uint16_t* k;
  const uint16_t* v;
  int token, end;
  int g, t;
  int place;
  int tile = 0;

  __device__ __forceinline__ void Issue(uint32_t to) {
    if (token >= end) return;
    if (tile < kKeyTiles) {
      // Tokens TokenRow(g) + 4 (tile % 2) .. + 3, channels 8 t .. + 7 of the 32.
      const int first = token + TokenRow(g) + 4 * (tile & 1);
      const uint16_t* from = k + static_cast<int64_t>(first) * kDim + 32 * (tile >> 1) + 8 * t;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        CopyAsync16(to + place + i * 512, from + i * kDim, first + i >= end);
      }
    } else {
      // Channels 8 g .. + 7 of the 64, tokens 8 t + j and 32 + 8 t + j for two j.
      const int channel = 64 * ((tile - kKeyTiles) >> 2) + 8 * g;
      const int first = token + 8 * t + 2 * ((tile - kKeyTiles) & 3);
      const uint16_t* from = v + static_cast<int64_t>(first) * kDim + channel;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int ahead = (i >> 1) + 32 * (i & 1);
        CopyAsync16(to + place + i * 512, from + ahead * kDim,
                    first + ahead >= end || channel >= kDim);
      }
    }
    if (++tile == kTiles) {
      tile = 0;
      token += kPanelTokens;
    }
  }
};

template <int kDim, int kColumns>
__device__ void ExactItem(const SequenceAttentionParams& p, const SequencePlan& plan,
                          const SequenceRef& sequence, int item, uint8_t* shared) {
  const int lane = threadIdx.x, g = lane >> 2, t = lane & 3;
  const int head = blockIdx.x;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * p.kv_heads + head;
  const int first = item * plan.exact_chunk;
  const int end = min(first + plan.exact_chunk, sequence.exact_tokens);
  const bool is_bf16 = p.dtype == ElementType::kBf16;

  ExactSource<kDim> source = {sequence.exact_k + head * sequence.exact_head_stride,
                              sequence.exact_v + head * sequence.exact_head_stride,
                              first,
                              end,
                              g,
                              t,
                              lane * 16};
  const int places[4] = {lane * 16, lane * 16 + 512, lane * 16 + 1024, lane * 16 + 1536};
  TileRing<ExactSource<kDim>> ring(shared, source);

  const Queries queries = {&p, row * plan.group, plan.group};
  auto* query_tiles = reinterpret_cast<uint4*>(shared + kStages * kTileBytes) + lane;
  for (int step = 0; step < kDim / 16; ++step) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      float x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int channel = 32 * (step >> 1) + 8 * t + 4 * (step & 1) + i;
        x[i] = 8 * c + g < plan.group ? queries.Load(8 * c + g, channel) : 0;
      }
      query_tiles[(step * kColumns + c) * 32] = is_bf16 ? SplitBf16(x) : SplitF16(x);
    }
  }

  Softmax<kColumns> softmax;
  constexpr int kBlocks = (kDim + 63) / 64;
  float outputs[kBlocks * 4][kColumns][4] = {};
  for (int token = first; token < end; token += kPanelTokens) {
    Scores<kColumns> scores = {};
    for (int block = 0; block < kDim / 32; ++block) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        uint4 x[4];
        ring.Next(places, x);
        const uint32_t(&w)[4][4] = reinterpret_cast<const uint32_t(&)[4][4]>(x);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int m = i / 2, step = i % 2;
          const uint32_t a0 = w[2 * m][2 * step], a1 = w[2 * m + 1][2 * step];
          const uint32_t a2 = w[2 * m][2 * step + 1], a3 = w[2 * m + 1][2 * step + 1];
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            const uint4 b = query_tiles[((2 * block + step) * kColumns + c) * 32];
            float(&to)[4] = scores[c][2 * pair + m];
            if (is_bf16) {
              MmaBf16(to, a0, a1, a2, a3, b.x, b.y);
              MmaBf16(to, a0, a1, a2, a3, b.z, b.w);
            } else {
              MmaF16(to, a0, a1, a2, a3, b.x, b.y);
              MmaF16(to, a0, a1, a2, a3, b.z, b.w);
            }
          }
        }
      }
    }

    float keep[kColumns][2];
    uint32_t weights[kColumns][8];
    if (softmax.Weigh(scores, end - token, lane, keep, weights)) {
#pragma unroll
      for (int i = 0; i < kBlocks * 4 * kColumns; ++i) {
        Rescale(outputs[i / kColumns][i % kColumns], keep[i % kColumns]);
      }
    }
    uint32_t high[kColumns][8], low[kColumns][8];
    SplitWeights(weights, high, low);
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint4 x[4];
        ring.Next(places, x);
        const uint32_t(&w)[4][4] = reinterpret_cast<const uint32_t(&)[4][4]>(x);
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const uint32_t a0 = LowHalves(w[0][m], w[1][m]), a1 = HighHalves(w[0][m], w[1][m]);
          const uint32_t a2 = LowHalves(w[2][m], w[3][m]), a3 = HighHalves(w[2][m], w[3][m]);
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            float(&to)[4] = outputs[block * 4 + m][c];
            if (is_bf16) {
              MmaBf16(to, a0, a1, a2, a3, high[c][2 * j], high[c][2 * j + 1]);
              MmaBf16(to, a0, a1, a2, a3, low[c][2 * j], low[c][2 * j + 1]);
            } else {
              MmaF16(to, a0, a1, a2, a3, weights[c][2 * j], weights[c][2 * j + 1]);
            }
          }
        }
      }
    }
  }

  const int64_t slot = (row * plan.items() + plan.middle_items + item) * plan.group;
  softmax.Store(plan.softmax + slot, plan.group, lane);
#pragma unroll
  for (int i = 0; i < kBlocks * 4 * kColumns; ++i) {
    const int column = i % kColumns, block = i / kColumns / 4, m = i / kColumns % 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      // Rows g and g + 8 of a tile are channels 8 g + 2 m and 8 g + 2 m + 1.
      const int channel = 64 * block + 8 * g + 2 * m + j / 2;
      const int query = 8 * column + 2 * t + j % 2;
      if (query < plan.group && channel < kDim) {
        plan.outputs[(slot + query) * kDim + channel] = outputs[i / kColumns][column][j];
      }
    }
  }
}

}  // namespace fourierkv::kernels
