// Products with the coefficients of spectral channels, on tensor cores: C q and C^T of the weights
// that states got. By all kTransformThreads threads of a block, 64 states a warp.

#pragma once

#include <cstdint>

#include "kernels/sequence_tokens.cuh"
#include "kernels/sequence_transform.cuh"

namespace fourierkv::kernels {

inline constexpr int kStatesPerWarp = 64;
inline constexpr int kStateWarps = kTransformThreads / 32;
static_assert(kStatesPerWarp * kStateWarps == 2 * kMaxFrequencies, "every state has a warp");

// Grids of pairs of queries. Before and after the transform the first floats of pair i are states
// of queries 2 i and 2 i + 1: [2][2 kMaxFrequencies]. What is behind them is free then.
template <int kGroup>
using Grids = float2[kGroup / 2][kGridCells];

template <int kGroup>
__device__ __forceinline__ float* StatesOf(Grids<kGroup>& grids, int query) {
  return reinterpret_cast<float*>(grids[query / 2]) + query % 2 * 2 * kMaxFrequencies;
}
template <int kGroup>
__device__ __forceinline__ float* ScratchOf(Grids<kGroup>& grids, int query) {
  return StatesOf<kGroup>(grids, query) + 4 * kMaxFrequencies;
}

// Eight neighbouring coefficients in bf16 and, of float ones, what rounding left.
template <typename Coefficient>
struct Eight {
  uint32_t high[4];
  uint32_t low[sizeof(Coefficient)];  // four if float
};

__device__ __forceinline__ Eight<uint16_t> LoadEight(const uint16_t* at) {
  const uint4 x = __ldg(reinterpret_cast<const uint4*>(at));
  return {{x.x, x.y, x.z, x.w}, {}};
}
__device__ __forceinline__ Eight<float> LoadEight(const float* at) {
  Eight<float> eight;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = __ldg(reinterpret_cast<const float2*>(at) + i);
    eight.high[i] = PackBf16(x.x, x.y);
    eight.low[i] = PackBf16(x.x - LowBf16(eight.high[i]), x.y - HighBf16(eight.high[i]));
  }
  return eight;
}

// The state scores C q, queries[j][q] being those of channel j, to the first floats of the grids.
template <int kGroup, typename Coefficient>
__device__ void ProjectQueries(const Coefficient* coefficients, int spectral, int states,
                               const float (*queries)[kGroup], Grids<kGroup>& grids) {
  constexpr int kColumns = (kGroup + 7) / 8;
  const int lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  // Rows are states, this lane's eight from `state` on; the tile's channels are 4 t .. 4 t + 3.
  const int state = kStatesPerWarp * (threadIdx.x / 32) + 8 * g;
  Scores<kColumns> sums = {};
#pragma unroll 2
  for (int first = 4 * t; first < spectral + 4 * t; first += 16) {
    Eight<Coefficient> x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[i] = {};
      if (first + i < spectral && state < states) {
        x[i] = LoadEight(coefficients + static_cast<int64_t>(first + i) * states + state);
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      float q[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        q[i] = first + i < spectral && 8 * c + g < kGroup ? queries[first + i][8 * c + g] : 0;
      }
      const uint4 b = SplitBf16(q);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const uint32_t a0 = LowHalves(x[0].high[m], x[1].high[m]);
        const uint32_t a1 = HighHalves(x[0].high[m], x[1].high[m]);
        const uint32_t a2 = LowHalves(x[2].high[m], x[3].high[m]);
        const uint32_t a3 = HighHalves(x[2].high[m], x[3].high[m]);
        MmaBf16(sums[c][m], a0, a1, a2, a3, b.x, b.y);
        MmaBf16(sums[c][m], a0, a1, a2, a3, b.z, b.w);
        if constexpr (sizeof(Coefficient) == 4) {
          MmaBf16(sums[c][m], LowHalves(x[0].low[m], x[1].low[m]),
                  HighHalves(x[0].low[m], x[1].low[m]), LowHalves(x[2].low[m], x[3].low[m]),
                  HighHalves(x[2].low[m], x[3].low[m]), b.x, b.y);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kColumns * 4; ++i) {
    const int c = i / 4, m = i % 4;
    if (8 * c + 2 * t >= kGroup) continue;
    // Columns 2 t and 2 t + 1 are a pair of queries.
    float* at = StatesOf<kGroup>(grids, 8 * c + 2 * t) + state + 2 * m;
    *reinterpret_cast<float2*>(at) = make_float2(sums[c][m][0], sums[c][m][2]);
    *reinterpret_cast<float2*>(at + 2 * kMaxFrequencies) =
        make_float2(sums[c][m][1], sums[c][m][3]);
  }
}

// add(q, j, c_j . states of q) for every query of the group and every channel j, by one thread
// each. All threads agree before and afterwards.
template <int kGroup, typename Coefficient, typename Add>
__device__ void ProjectStates(const Coefficient* coefficients, int spectral, int states, int group,
                              Grids<kGroup>& grids, Add add) {
  constexpr int kColumns = (kGroup + 7) / 8;
  constexpr int kRows = 64;  // channels at a time
  static_assert(kRows * kStateWarps == 2 * kMaxFrequencies,
                "sums of all warps fit behind the states");
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  // Columns are states: of each 32 this lane's eight, four a step.
  const int first_state = kStatesPerWarp * warp + 8 * t;
  uint4 b[kColumns][2][2];
#pragma unroll
  for (int i = 0; i < kColumns * 4; ++i) {
    const int c = i / 4, block = i / 2 % 2, step = i % 2;
    const int state = first_state + 32 * block + 4 * step;
    float4 x = make_float4(0, 0, 0, 0);
    if (8 * c + g < kGroup && state < states) {
      x = *reinterpret_cast<const float4*>(StatesOf<kGroup>(grids, 8 * c + g) + state);
    }
    b[c][block][step] = SplitBf16({x.x, x.y, x.z, x.w});
  }
  for (int chunk = 0; chunk < spectral; chunk += kRows) {
#pragma unroll 2
    for (int tile = 0; tile < kRows; tile += 16) {
      const int row = chunk + tile + g;  // and row + 8
      float sums[kColumns][4] = {};
#pragma unroll
      for (int block = 0; block < 2; ++block) {
        const int state = first_state + 32 * block;
        Eight<Coefficient> x[2] = {};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (row + 8 * i < spectral && state < states) {
            x[i] = LoadEight(coefficients + static_cast<int64_t>(row + 8 * i) * states + state);
          }
        }
#pragma unroll
        for (int i = 0; i < kColumns * 2; ++i) {
          const int c = i / 2, step = i % 2;
          const uint4& y = b[c][block][step];
          const uint32_t a0 = x[0].high[2 * step], a1 = x[1].high[2 * step];
          const uint32_t a2 = x[0].high[2 * step + 1], a3 = x[1].high[2 * step + 1];
          MmaBf16(sums[c], a0, a1, a2, a3, y.x, y.y);
          MmaBf16(sums[c], a0, a1, a2, a3, y.z, y.w);
          if constexpr (sizeof(Coefficient) == 4) {
            MmaBf16(sums[c], x[0].low[2 * step], x[1].low[2 * step], x[0].low[2 * step + 1],
                    x[1].low[2 * step + 1], y.x, y.y);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kColumns * 4; ++i) {
        const int query = 8 * (i / 4) + 2 * t + i % 2;
        if (query >= kGroup) continue;
        ScratchOf<kGroup>(grids, query)[kRows * warp + tile + g + 8 * (i / 2 % 2)] =
            sums[i / 4][i % 4];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kRows * group; i += kTransformThreads) {
      const int query = i / kRows, channel = chunk + i % kRows;
      if (channel >= spectral) continue;
      const float* at = ScratchOf<kGroup>(grids, query) + i % kRows;
      float total = 0;
#pragma unroll
      for (int j = 0; j < kStateWarps; ++j) total += at[kRows * j];
      add(query, channel, total);
    }
    __syncthreads();
  }
}

}  // namespace fourierkv::kernels
