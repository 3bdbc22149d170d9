// How records of parts are added up, at most kMergedParts of a kind at once.

#pragma once

#include <cstdint>

#include "kernels/attention_outputs.cuh"
#include "kernels/attention_params.cuh"
#include "kernels/attention_program.h"
#include "kernels/attention_team.cuh"
#include "kernels/attention_uniform_record.cuh"

namespace fourierkv::kernels {

// A record has partial results of 8 heads: [8] maxima, [8] sums, then outputs as a warp has them,
// which may take one chunk more than there are.
__host__ __device__ inline int64_t RecordFloats(int chunks) {
  return 16 + 128 * static_cast<int64_t>(chunks + 1);
}

// Records of the parts of one kind: compact units, or pages.
struct PartRecords {
  float* records;
  int64_t record_floats;
  int count;
  int first;  // record of part 0
  int apart;  // of part j: first + j apart

  __device__ __forceinline__ float* Of(int part) const {
    return records + (first + static_cast<int64_t>(part) * apart) * record_floats;
  }
};

// V's rotation is turned back in so many parts at the same time.
inline constexpr int kTurnedQuarters = 4;
inline constexpr int kTurnedScratchBytes = kTurnedQuarters * 4 * 32 * 16;

// What the warps of a block have in shared memory, each so many bytes behind the one before.
struct WarpResults {
  const uint8_t* outputs;  // of warp 0
  int outputs_apart;
  const uint8_t* stats;  // f32[2][8]: maxima, sums
  int stats_apart;

  __device__ __forceinline__ const float4* Outputs(int warp) const {
    return reinterpret_cast<const float4*>(outputs + warp * outputs_apart);
  }
  __device__ __forceinline__ const float* Stats(int warp) const {
    return reinterpret_cast<const float*>(stats + warp * stats_apart);
  }
};

// Which head and channel the floats of a record are of. An item is four of them.
struct RecordShape {
  bool pages;
  bool uniform;  // outputs stand as UniformOutputs says; not those of pages
  UniformPart v;
  int chunks;
  int log_lanes;
  int heads;
  int head_dim;
  const int16_t* channels;  // [chunks][16]; not of pages

  __device__ __forceinline__ int Items() const {
    if (!uniform) return chunks << log_lanes;
    return (heads > kTileHeads ? 2 : 1) * UniformOutputs::Floats(v) / 4;
  }
  // Of uniform heads: the first item of the item's tile of four heads.
  __device__ __forceinline__ int TileOf(int item) const {
    const int items = UniformOutputs::Floats(v) / 4;
    return item >= items ? items : 0;
  }
  // The first and the second head of an item. Of uniform heads floats 0 and 1 are the first's, else
  // 0 and 2.
  __device__ __forceinline__ int2 HeadsOf(int item) const {
    if (uniform) {
      const int tile = TileOf(item);
      const int2 heads = UniformOutputs::HeadsOf(v, item - tile);
      const int first = tile == 0 ? 0 : kTileHeads;
      return {first + heads.x, first + heads.y};
    }
    const int first = 2 * (item & ((1 << (log_lanes - 3)) - 1));
    return {first, first + 1};
  }
  // The channel of float i; negative: none.
  __device__ __forceinline__ int Channel(int item, int i) const {
    if (uniform) {
      const int slot = UniformOutputs::SlotOf(v, item - TileOf(item), i);
      return slot < 0 ? -1 : __ldg(channels + slot);
    }
    const int chunk = item >> log_lanes;
    const int r = (item >> (log_lanes - 3)) & 7;
    if (!pages) return __ldg(channels + kChunk * chunk + r + 8 * (i / 2));
    return 64 * (chunk >> 2) + 8 * r + 2 * (chunk & 3) + i / 2;
  }
  // Into sums[head][channel].
  __device__ __forceinline__ void Store(int item, const float4& sum, float* sums) const {
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
    const int2 own = HeadsOf(item);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = Channel(item, i);
      const int head = (uniform ? i < 2 : i % 2 == 0) ? own.x : own.y;
      if (channel >= 0 && channel < head_dim) sums[head * head_dim + channel] = values[i];
    }
  }
};

// Maxima and sums of parts, then what each counts: lane 8 j + head has, at [i], those of part 4 i +
// j. All lanes of a warp call everything.
struct PartWeights {
  static constexpr int kRounds = kMergedParts / 4;
  float weight[kRounds];  // maxima first
  float sum[kRounds];

  __device__ __forceinline__ void Load(const PartRecords& parts, int lane) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int part = 4 * i + (lane >> 3);
      weight[i] = kNoScore;
      sum[i] = 0;
      if (part < parts.count) {
        const float* const own = parts.Of(part) + (lane & 7);
        weight[i] = __ldcg(own);
        sum[i] = __ldcg(own + 8);
      }
    }
  }
  // Of the lane's head.
  __device__ __forceinline__ float Largest() const {
    float largest = weight[0];
#pragma unroll
    for (int i = 1; i < kRounds; ++i) largest = fmaxf(largest, weight[i]);
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 8));
    return fmaxf(largest, __shfl_xor_sync(~0u, largest, 16));
  }
  // Maxima become weights relative to `largest`. Returns the sum of the lane's head.
  __device__ __forceinline__ float Weigh(float largest) {
    float total = 0;
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      weight[i] = Exp2(weight[i] - largest);
      total = fmaf(weight[i], sum[i], total);
    }
    total += __shfl_xor_sync(~0u, total, 8);
    return total + __shfl_xor_sync(~0u, total, 16);
  }
  __device__ __forceinline__ void Scale(float factor) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) weight[i] *= factor;
  }
};

// Adds up the parts' outputs in an order that does not vary; store(item, sum) gets what every lane
// has. Warps of a team take items in turn.
template <typename Store>
__device__ __forceinline__ void SumParts(const PartRecords& parts, const PartWeights& weights,
                                         const RecordShape& shape, const Team& team, Store store) {
  constexpr int kAtOnce = 4;       // parts, and ...
  constexpr int kItemsAtOnce = 2;  // ... items of a lane: what is loaded before anything waits
  const int items = shape.Items();
#pragma unroll 1
  for (int item = team.thread; item - team.lane() < items; item += kItemsAtOnce * team.threads()) {
    int at[kItemsAtOnce];
    bool valid[kItemsAtOnce];  // others' items may be being written
    int2 heads[kItemsAtOnce];
    float4 all[kItemsAtOnce];
#pragma unroll
    for (int i = 0; i < kItemsAtOnce; ++i) {
      at[i] = min(item + i * team.threads(), items - 1);
      valid[i] = item + i * team.threads() < items;
      heads[i] = shape.HeadsOf(at[i]);
      all[i] = {0, 0, 0, 0};
    }
#pragma unroll 1
    for (int first = 0; first < parts.count; first += kAtOnce) {
      static_assert(kAtOnce == 4 && PartWeights::kRounds == 4);
      const float own = first == 0   ? weights.weight[0]
                        : first == 4 ? weights.weight[1]
                        : first == 8 ? weights.weight[2]
                                     : weights.weight[3];
      float4 o[kAtOnce][kItemsAtOnce];
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) {
        const auto* const outputs =
            reinterpret_cast<const float4*>(parts.Of(min(first + p, parts.count - 1)) + 16);
#pragma unroll
        for (int i = 0; i < kItemsAtOnce; ++i) {
          o[p][i] = {0, 0, 0, 0};
          if (valid[i] && first + p < parts.count) o[p][i] = __ldcg(outputs + at[i]);
        }
      }
#pragma unroll
      for (int p = 0; p < kAtOnce; ++p) {
#pragma unroll
        for (int i = 0; i < kItemsAtOnce; ++i) {
          const float a = __shfl_sync(~0u, own, 8 * p + heads[i].x);
          const float b = __shfl_sync(~0u, own, 8 * p + heads[i].y);
          all[i].x = fmaf(o[p][i].x, a, all[i].x);
          all[i].y = fmaf(o[p][i].y, shape.uniform ? a : b, all[i].y);
          all[i].z = fmaf(o[p][i].z, shape.uniform ? b : a, all[i].z);
          all[i].w = fmaf(o[p][i].w, b, all[i].w);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kItemsAtOnce; ++i) {
      if (valid[i]) store(at[i], all[i]);
    }
  }
}

// What the warps of a team have, as one record.
static __device__ __noinline__ void LeaveRecord(const Team& team, const WarpResults& results,
                                                const RecordShape& shape, float* record) {
  team.Sync();
  const int lane = team.lane();
  const bool own = lane < 8 * team.warps;  // lane 8 j + head: of that head and warp j
  float weight = kNoScore, sum = 0;
  if (own) {
    const float* const stats = results.Stats(team.first + (lane >> 3)) + (lane & 7);
    weight = stats[0];
    sum = stats[8];
  }
  float largest = fmaxf(weight, __shfl_xor_sync(~0u, weight, 8));
  largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 16));
  weight = own ? Exp2(weight - largest) : 0;
  sum *= weight;
  sum += __shfl_xor_sync(~0u, sum, 8);
  sum += __shfl_xor_sync(~0u, sum, 16);
  if (team.thread < 8) {
    __stcg(record + team.thread, largest);
    __stcg(record + 8 + team.thread, sum);
  }
  const int items = shape.Items();
#pragma unroll 1
  for (int item = team.thread; item - lane < items; item += team.threads()) {
    const int at = min(item, items - 1);
    const int2 heads = shape.HeadsOf(at);
    float4 all = {0, 0, 0, 0};
#pragma unroll
    for (int warp = 0; warp < kAttentionWarps; ++warp) {
      const float a = __shfl_sync(~0u, weight, 8 * warp + heads.x);
      const float b = __shfl_sync(~0u, weight, 8 * warp + heads.y);
      if (warp >= team.warps) continue;
      const float4 o = results.Outputs(team.first + warp)[at];
      all.x = fmaf(o.x, a, all.x);
      all.y = fmaf(o.y, shape.uniform ? a : b, all.y);
      all.z = fmaf(o.z, shape.uniform ? b : a, all.z);
      all.w = fmaf(o.w, b, all.w);
    }
    if (item < items) __stcg(reinterpret_cast<float4*>(record + 16) + item, all);
  }
}

// to[head][channel] += sums[head][j] times the transposed rotation, for the 4 heads from `first`
// on. Every warp takes its share of the quarters of all j, which are added up in their order,
// however large the team is; `scratch`: float4[kTurnedQuarters][4][32], if it has several warps. A
// function of its own, as it must not take registers from what units need.
static __device__ __noinline__ void AddTurned(const Team& team, const float* rotation, int d,
                                              int first_head, const float* sums, float4* scratch,
                                              float* to) {
  constexpr int kHeads = 4;  // at once
  constexpr int kLaneChannels = 4;
  constexpr int kChannels = 32 * kLaneChannels;
  const int lane = team.lane();
  const int share = (d / kTurnedQuarters + 3) & ~3;
  sums += first_head * d;
  to += first_head * d;
#pragma unroll 1
  for (int first = 0; first < d; first += kChannels) {
    float turned[kHeads][kLaneChannels] = {};  // by a team of one warp
    const int channel = first + kLaneChannels * lane;
    team.Sync();  // the scratch memory is free
#pragma unroll 1
    for (int quarter = team.thread >> 5; quarter < kTurnedQuarters; quarter += team.warps) {
      float all[kHeads][kLaneChannels] = {};
      const int end = min(share * (quarter + 1), d);
#pragma unroll 4
      for (int j = share * quarter; channel < d && j < end; j += 4) {
        float4 u[4];
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          u[x] = __ldg(reinterpret_cast<const float4*>(rotation + (j + x) * d + channel));
        }
#pragma unroll
        for (int head = 0; head < kHeads; ++head) {
          const float4 four = *reinterpret_cast<const float4*>(sums + head * d + j);
          const float own[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
          for (int x = 0; x < 4; ++x) {
            all[head][0] = fmaf(own[x], u[x].x, all[head][0]);
            all[head][1] = fmaf(own[x], u[x].y, all[head][1]);
            all[head][2] = fmaf(own[x], u[x].z, all[head][2]);
            all[head][3] = fmaf(own[x], u[x].w, all[head][3]);
          }
        }
      }
#pragma unroll
      for (int head = 0; head < kHeads; ++head) {
        if (team.warps > 1) {
          scratch[(quarter * kHeads + head) * 32 + lane] = {all[head][0], all[head][1],
                                                            all[head][2], all[head][3]};
          continue;
        }
#pragma unroll
        for (int i = 0; i < kLaneChannels; ++i) turned[head][i] += all[head][i];
      }
    }
    if (team.warps == 1) {
#pragma unroll
      for (int head = 0; head < kHeads && channel < d; ++head) {
        auto* const own = reinterpret_cast<float4*>(to + head * d + channel);
        const float4 before = *own;
        *own = {before.x + turned[head][0], before.y + turned[head][1], before.z + turned[head][2],
                before.w + turned[head][3]};
      }
      continue;
    }
    team.Sync();
    const auto* parts = reinterpret_cast<const float*>(scratch);
    for (int i = team.thread; i < kHeads * kChannels; i += team.threads()) {
      const int own = first + i % kChannels;
      float sum = 0;
#pragma unroll
      for (int quarter = 0; quarter < kTurnedQuarters; ++quarter) {
        sum += parts[kHeads * kChannels * quarter + i];
      }
      if (own < d) to[i / kChannels * d + own] += sum;
    }
  }
}

}  // namespace fourierkv::kernels
