// One warp's item of the middle: resident channels, and spectral ones from and to nodes.
// docs/kernels_faithful.md.

#pragma once

#include <cstdint>

#include "kernels/sequence_tokens.cuh"

namespace fourierkv::kernels {

inline constexpr int kMaxSteps = 4;  // of 16 nodes

// Resident channels of a chunk of the middle: of each panel tiles of 16 channels of K, then of V.
// Rows are copied whole, 128 bytes of a channel by 8 lanes.
struct ResidentSource {
  const uint16_t* k;  // lane (g, t): channel 4 t, token TokenRow(g) of the next panel
  const uint16_t* v;  // lane l: channel l / 8, token 8 (l % 8)
  int64_t stride;
  int k_channels, v_channels;  // from this lane's on
  int k_tokens, v_tokens;
  int k_tiles, tiles;  // of a panel: of K, of both
  int panels;          // left
  int k_place, v_place;
  int tile = 0;

  __device__ __forceinline__ void Issue(uint32_t to) {
    if (panels == 0) return;
    if (tile < k_tiles) {
      const uint16_t* from = k + 16 * tile * stride;
      const int channels = k_tokens > 0 ? k_channels - 16 * tile : 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        CopyAsync16(to + k_place + i * 512, from + i * stride, i >= channels);
      }
    } else {
      const int first = 16 * (tile - k_tiles);
      const uint16_t* from = v + first * stride;
      const int channels = v_tokens > 0 ? v_channels - first : 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        CopyAsync16(to + v_place + i * 512, from + 4 * i * stride, 4 * i >= channels);
      }
    }
    if (++tile == tiles) {
      tile = 0;
      --panels;
      k += kPanelTokens;
      v += kPanelTokens;
      k_tokens -= kPanelTokens;
      v_tokens -= kPanelTokens;
    }
  }
};

// Clears what stands behind the last token in a tile of V: `valid` tokens of the panel exist.
__device__ __forceinline__ void ClearBehind(uint32_t (&w)[4][4], int valid, int t) {
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    const int left = valid - (8 * t + 32 * (i / 4 % 2) + 2 * (i % 4));
    if (left < 2) w[i / 4][i % 4] &= left == 1 ? 0xffffu : 0;
  }
}

template <int kDim, int kColumns>
__device__ void MiddleItem(const SequenceAttentionParams& p, const SequencePlan& plan,
                           const SequenceRef& sequence, int item, uint8_t* shared) {
  const int lane = threadIdx.x, g = lane >> 2, t = lane & 3;
  const int head = blockIdx.x;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * p.kv_heads + head;
  const int tokens = sequence.middle_tokens;
  const int first = item * plan.chunk_tokens;
  const int end = min(first + plan.chunk_tokens, tokens);
  const int k_spectral = p.k.spectral[head], v_spectral = p.v.spectral[head];
  const int k_channels = kDim - k_spectral, v_channels = kDim - v_spectral;
  const int k_tiles = (k_channels + 15) / 16, v_tiles = (v_channels + 15) / 16;

  const int64_t stride = sequence.resident_stride;
  ResidentSource source;
  source.k = p.sides[2 * row].residents + 4 * t * stride + first + TokenRow(g);
  source.v = p.sides[2 * row + 1].residents + (lane >> 3) * stride + first + 8 * (lane & 7);
  source.stride = stride;
  source.k_channels = k_channels - 4 * t;
  source.v_channels = v_channels - (lane >> 3);
  source.k_tokens = tokens - first - TokenRow(g);
  source.v_tokens = tokens - first - 8 * (lane & 7);
  source.k_tiles = k_tiles;
  source.tiles = k_tiles + v_tiles;
  source.panels = source.tiles == 0 ? 0 : (end - first + kPanelTokens - 1) / kPanelTokens;
  // K is read by the lanes that copied it. V's channels g, g + 8 and tokens 8 t .., 32 + 8 t .. are
  // 128 bytes a row, whose halves are exchanged in odd ones, so that 8 lanes read all banks.
  source.k_place = lane * 16;
  source.v_place = (lane >> 3) * 128 + (((lane & 7) ^ (lane >> 3 & 1) << 2) << 4);
  const int k_places[4] = {lane * 16, lane * 16 + 512, lane * 16 + 1024, lane * 16 + 1536};
  const int v_first = g * 128 + ((t ^ (g & 1) << 2) << 4);
  const int v_places[4] = {v_first, v_first ^ 64, v_first + 1024, (v_first ^ 64) + 1024};
  TileRing<ResidentSource> ring(shared, source);

  const Queries queries = {&p, row * plan.group, plan.group};
  auto* query_tiles = reinterpret_cast<uint4*>(shared + kStages * kTileBytes) + lane;
  for (int tile = 0; tile < k_tiles; ++tile) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      float x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int channel = 16 * tile + 4 * t + i;
        const bool there = channel < k_channels && 8 * c + g < plan.group;
        x[i] = there ? queries.Load(8 * c + g, p.k.ids[head * kDim + k_spectral + channel]) : 0;
      }
      query_tiles[(tile * kColumns + c) * 32] = SplitBf16(x);
    }
  }

  const SequenceBasisView& basis = sequence.basis;
  const int steps = basis.nodes / kNodeStep;
  const int panels_per_window = basis.window_tokens / kPanelTokens;
  const auto* to_tokens = reinterpret_cast<const uint4*>(basis.data + basis.to_tokens) + lane;
  const auto* to_nodes = reinterpret_cast<const uint4*>(basis.data + basis.to_nodes) + lane;
  const int window_size = plan.group * basis.nodes;  // values of a window in nodes and sums
  int window = first / basis.window_tokens;
  const uint16_t* nodes = plan.nodes + row * plan.group * p.max_nodes +
                          static_cast<int64_t>(window) * window_size + g * basis.nodes + 4 * t;
  float* sums =
      plan.sums + row * plan.group * p.max_nodes + static_cast<int64_t>(window) * window_size;
  float* maxima = plan.sum_maxima + (row * plan.max_windows + window) * plan.group;
  WaitForPrerequisites();  // nodes and their scales
  float factor[kColumns][2], offset[kColumns][2];
#pragma unroll
  for (int i = 0; i < kColumns * 2; ++i) {
    const int query = 8 * (i / 2) + 2 * t + i % 2;
    const float2 both =
        query < plan.group ? plan.node_scales[row * plan.group + query] : make_float2(0, 0);
    factor[i / 2][i % 2] = both.x;
    offset[i / 2][i % 2] = both.y;
  }
  const auto load_nodes = [&](int step, int column) {
    return 8 * column + g < plan.group ? *reinterpret_cast<const uint2*>(
                                             nodes + 8 * column * basis.nodes + step * kNodeStep)
                                       : make_uint2(0, 0);
  };

  Softmax<kColumns> softmax;
  float outputs[kDim / 16][kColumns][4] = {};
  float brought[kMaxSteps][kColumns][4] = {};
  int panel = 0;  // of the window
  for (int token = first; token < end; token += kPanelTokens) {
    uint2 first_nodes[kColumns] = {};
    if (k_spectral > 0) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) first_nodes[c] = load_nodes(0, c);
    }
    Scores<kColumns> scores = {};
    for (int tile = 0; tile < k_tiles; ++tile) {
      uint4 x[4];
      ring.Next(k_places, x);
      const uint32_t(&w)[4][4] = reinterpret_cast<const uint32_t(&)[4][4]>(x);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const uint4 b = query_tiles[(tile * kColumns + c) * 32];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const uint32_t a0 = LowHalves(w[0][m], w[1][m]), a1 = HighHalves(w[0][m], w[1][m]);
          const uint32_t a2 = LowHalves(w[2][m], w[3][m]), a3 = HighHalves(w[2][m], w[3][m]);
          MmaBf16(scores[c][m], a0, a1, a2, a3, b.x, b.y);
          MmaBf16(scores[c][m], a0, a1, a2, a3, b.z, b.w);
        }
      }
    }
    if (k_spectral > 0) {
      Scores<kColumns> spectral = {};
      for (int step = 0; step < steps; ++step) {
        uint2 b[kColumns];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          b[c] = step == 0 ? first_nodes[c] : load_nodes(step, c);
        }
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const uint4 a = __ldg(to_tokens + ((panel * steps + step) * 4 + m) * 32);
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            MmaF16(spectral[c][m], a.x, a.y, a.z, a.w, b[c].x, b[c].y);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kColumns * 16; ++i) {
        const int c = i / 16, m = i / 4 % 4, j = i % 4;
        scores[c][m][j] += spectral[c][m][j] * factor[c][j % 2] + offset[c][j % 2];
      }
    }

    float keep[kColumns][2];
    uint32_t weights[kColumns][8];
    if (softmax.Weigh(scores, end - token, lane, keep, weights)) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int i = 0; i < kDim / 16; ++i) Rescale(outputs[i][c], keep[c]);
#pragma unroll
        for (int i = 0; i < kMaxSteps; ++i) Rescale(brought[i][c], keep[c]);
      }
    }

    if (v_spectral > 0) {
#pragma unroll
      for (int step = 0; step < kMaxSteps; ++step) {
        if (step >= steps) break;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint4 a = __ldg(to_nodes + ((panel * steps + step) * 4 + j) * 32);
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            MmaF16(brought[step][c], a.x, a.y, a.z, a.w, weights[c][2 * j], weights[c][2 * j + 1]);
          }
        }
      }
    }
    if (v_tiles > 0) {
      uint32_t high[kColumns][8], low[kColumns][8];
      SplitWeights(weights, high, low);
#pragma unroll
      for (int tile = 0; tile < kDim / 16; ++tile) {
        if (tile >= v_tiles) break;
        uint4 x[4];
        ring.Next(v_places, x);
        uint32_t(&w)[4][4] = reinterpret_cast<uint32_t(&)[4][4]>(x);
        if (end - token < kPanelTokens) ClearBehind(w, end - token, t);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t a0 = LowHalves(w[0][j], w[1][j]), a1 = LowHalves(w[2][j], w[3][j]);
          const uint32_t a2 = HighHalves(w[0][j], w[1][j]), a3 = HighHalves(w[2][j], w[3][j]);
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            MmaBf16(outputs[tile][c], a0, a1, a2, a3, high[c][2 * j], high[c][2 * j + 1]);
            MmaBf16(outputs[tile][c], a0, a1, a2, a3, low[c][2 * j], low[c][2 * j + 1]);
          }
        }
      }
    }

    if (++panel < panels_per_window && token + kPanelTokens < end) continue;
    // The window is complete: what its weights bring to its nodes.
    if (v_spectral > 0) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
#pragma unroll
        for (int step = 0; step < kMaxSteps; ++step) {
          if (step >= steps) break;
          StoreTile(brought[step][c], sums, basis.nodes, step * kNodeStep, basis.nodes, c,
                    plan.group, lane);
#pragma unroll
          for (int i = 0; i < 4; ++i) brought[step][c][i] = 0;
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int query = 8 * c + 2 * t + i;
          if (lane < 4 && query < plan.group) maxima[query] = softmax.maximum[c][i];
        }
      }
    }
    panel = 0;
    nodes += window_size;
    sums += window_size;
    maxima += plan.group;
  }

  const int64_t slot = (row * plan.items() + item) * plan.group;
  softmax.Store(plan.softmax + slot, plan.group, lane);
#pragma unroll
  for (int tile = 0; tile < kDim / 16; ++tile) {
    if (tile >= v_tiles) break;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      StoreTile(outputs[tile][c], plan.outputs + slot * kDim, kDim, 16 * tile, kDim, c, plan.group,
                lane);
    }
  }
}

}  // namespace fourierkv::kernels
