// How records of parts are added up, at most kMergedParts of a kind at once.

#pragma once

#include <cstdint>

#include "kernels/attention_outputs.cuh"
#include "kernels/attention_params.cuh"
#include "kernels/attention_program.h"
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
  int first;   // record of part 0
  int others;  // of part j: others + j apart
  int apart;

  __device__ __forceinline__ int IndexOf(int part) const {
    return part == 0 ? first : others + part * apart;
  }
  __device__ __forceinline__ float* Of(int part) const {
    return records + IndexOf(part) * record_floats;
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
// has. Warps of a worker take items in turn.
template <int kWarps, typename Store>
__device__ __forceinline__ void SumParts(const PartRecords& parts, const PartWeights& weights,
                                         const RecordShape& shape, int thread, Store store) {
  constexpr int kAtOnce = 8;       // parts, and ...
  constexpr int kItemsAtOnce = 2;  // ... items of a lane: what is loaded before anything waits
  static_assert(kMergedParts == 2 * kAtOnce);
  const int items = shape.Items();
#pragma unroll 1
  for (int item = thread; item - (thread & 31) < items; item += kItemsAtOnce * 32 * kWarps) {
    int at[kItemsAtOnce];
    bool valid[kItemsAtOnce];  // others' items may be being written
    int2 heads[kItemsAtOnce];
    float4 all[kItemsAtOnce];
#pragma unroll
    for (int i = 0; i < kItemsAtOnce; ++i) {
      at[i] = min(item + i * 32 * kWarps, items - 1);
      valid[i] = item + i * 32 * kWarps < items;
      heads[i] = shape.HeadsOf(at[i]);
      all[i] = {0, 0, 0, 0};
    }
#pragma unroll 1
    for (int first = 0; first < parts.count; first += kAtOnce) {
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
        const float own = first == 0 ? weights.weight[p / 4] : weights.weight[2 + p / 4];
#pragma unroll
        for (int i = 0; i < kItemsAtOnce; ++i) {
          const float a = __shfl_sync(~0u, own, 8 * (p % 4) + heads[i].x);
          const float b = __shfl_sync(~0u, own, 8 * (p % 4) + heads[i].y);
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

// to[head][channel] += sums[head][j] times the transposed rotation, for the 4 heads from `first`
// on. Every warp takes its share of all j; `scratch`: float4[kAttentionThreads 4], if there are
// several. A function of its own, as it must not take registers from what units need.
template <int kWarps>
static __device__ __noinline__ void AddTurned(const float* rotation, int d, int first_head,
                                              const float* sums, float4* scratch, float* to,
                                              int thread) {
  constexpr int kHeads = 4;  // at once
  constexpr int kLaneChannels = 4;
  constexpr int kChannels = 32 * kLaneChannels;
  const int warp = thread >> 5;
  const int lane = thread & 31;
  const int share = (d / kWarps + 3) & ~3;
  const int end = min(share * (warp + 1), d);
  sums += first_head * d;
  to += first_head * d;
#pragma unroll 1
  for (int first = 0; first < d; first += kChannels) {
    float all[kHeads][kLaneChannels] = {};
    const int channel = first + kLaneChannels * lane;
#pragma unroll 4
    for (int j = share * warp; channel < d && j < end; j += 4) {
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
    if (kWarps == 1) {
#pragma unroll
      for (int head = 0; head < kHeads && channel < d; ++head) {
        auto* const own = reinterpret_cast<float4*>(to + head * d + channel);
        const float4 before = *own;
        *own = {before.x + all[head][0], before.y + all[head][1], before.z + all[head][2],
                before.w + all[head][3]};
      }
      continue;
    }
    __syncthreads();
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
      scratch[(warp * kHeads + head) * 32 + lane] = {all[head][0], all[head][1], all[head][2],
                                                     all[head][3]};
    }
    __syncthreads();
    const auto* parts = reinterpret_cast<const float*>(scratch);
    for (int i = thread; i < kHeads * kChannels; i += 32 * kWarps) {
      const int own = first + i % kChannels;
      float sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += parts[kHeads * kChannels * w + i];
      if (own < d) to[i / kChannels * d + own] += sum;
    }
  }
}

}  // namespace fourierkv::kernels
