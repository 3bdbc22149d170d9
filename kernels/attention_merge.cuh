// What blocks leave of their parts of a piece, and how the last one to finish makes results of it.

#pragma once

#include <cstdint>

#include "kernels/attention_outputs.cuh"
#include "kernels/attention_program.h"
#include "kernels/attention_uniform_record.cuh"
#include "kernels/fourier_attention.h"
#include "kernels/work_split.cuh"

namespace fourierkv::kernels {

inline constexpr int kAttentionWarps = 4;
inline constexpr int kAttentionThreads = 32 * kAttentionWarps;

// Partial results of 8 heads: [8] maxima, [8] sums, then outputs as a warp has them, which may take
// one chunk more than there are.
__host__ __device__ inline int64_t RecordFloats(int chunks) {
  return 16 + 128 * static_cast<int64_t>(chunks + 1);
}

// Everything MergeGroup must know of the group whose parts are all there.
struct MergeTask {
  const float* records;
  int64_t record_floats;
  // Parts of the compact piece, then of the pages'.
  int parts[2];
  int64_t own_record[2];  // of a piece that is one part
  int first_stretch[2];
  bool first_begins[2];  // the first stretch begins with this piece
  int chunks[2];
  int log_lanes;
  bool uniform;   // outputs of the compact piece stand as UniformOutputs says
  UniformPart v;  // if so
  int heads;
  int head_dim;
  const int16_t* channels;  // [chunks[0]][16]
  const float* rotation;    // transposed; null: none

  __device__ __forceinline__ const float* Record(int kind, int part) const {
    int64_t index = own_record[kind];
    if (parts[kind] > 1) {
      index = 2 * static_cast<int64_t>(first_stretch[kind] + part) +
              (part == 0 && !first_begins[kind] ? 1 : 0);
    }
    return records + index * record_floats;
  }
};

__device__ __forceinline__ void DescribePiece(const WorkLine& line, int64_t total,
                                              const Piece& piece, MergeTask* task) {
  const int kind = piece.pages;
  task->parts[kind] = 0;
  if (piece.start == piece.end) return;
  const int first = line.StretchOf(total, piece.start);
  task->parts[kind] = line.StretchOf(total, piece.end - 1) - first + 1;
  task->first_stretch[kind] = first;
  task->first_begins[kind] = piece.start <= line.Start(total, first);
  task->own_record[kind] = PartialOf(line, total, piece, first);
}

inline constexpr int kItemsAtOnce = 4;  // of a lane

// Bytes of shared memory that MergeGroup needs.
__host__ __device__ inline int64_t MergeSharedBytes(int parts, int head_dim) {
  return 16 * kAttentionThreads * kItemsAtOnce +
         4 * (16 * static_cast<int64_t>(parts) + kAttentionThreads + 16 + 16 * head_dim);
}

// Four floats of a record, of all parts of a kind: the sum of parts, and where it goes.
class RecordItem {
 public:
  __device__ __forceinline__ RecordItem(const MergeTask& task, int kind, int item)
      : task_(task), kind_(kind), uniform_(kind == 0 && task.uniform), item_(item) {
    if (uniform_) {
      const int items = UniformOutputs::Floats(task.v) / 4;
      tile_ = item >= items ? kTileHeads : 0;
      if (tile_ != 0) item_ -= items;
      const int2 heads = UniformOutputs::HeadsOf(task.v, item_);
      first_ = tile_ + heads.x;
      second_ = tile_ + heads.y;
    } else {
      first_ = 2 * (item & ((1 << (task.log_lanes - 3)) - 1));
      second_ = first_ + 1;
    }
  }

  static __device__ __forceinline__ int Count(const MergeTask& task, int kind) {
    if (kind != 0 || !task.uniform) return task.chunks[kind] << task.log_lanes;
    const int tiles = (task.heads + kTileHeads - 1) / kTileHeads;
    return tiles * UniformOutputs::Floats(task.v) / 4;
  }

  // Adds what a part has, `o`, with its weights of the 8 heads.
  __device__ __forceinline__ void Add(const float4& o, const float* weights) {
    const float a = weights[first_], b = weights[second_];
    sum_.x = fmaf(o.x, a, sum_.x);
    sum_.y = fmaf(o.y, uniform_ ? a : b, sum_.y);
    sum_.z = fmaf(o.z, uniform_ ? b : a, sum_.z);
    sum_.w = fmaf(o.w, b, sum_.w);
  }

  __device__ __forceinline__ float4& sum() { return sum_; }

  // Into sums[head][channel].
  __device__ __forceinline__ void Store(float* sums) const {
    const float values[4] = {sum_.x, sum_.y, sum_.z, sum_.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int channel = Channel(i);
      const int head = (uniform_ ? i < 2 : i % 2 == 0) ? first_ : second_;
      if (channel >= 0 && channel < task_.head_dim)
        sums[head * task_.head_dim + channel] = values[i];
    }
  }

 private:
  __device__ __forceinline__ int Channel(int i) const {
    if (uniform_) {
      const int slot = UniformOutputs::SlotOf(task_.v, item_, i);
      return slot < 0 ? -1 : __ldg(task_.channels + slot);
    }
    const int chunk = item_ >> task_.log_lanes;
    const int r = (item_ >> (task_.log_lanes - 3)) & 7;
    if (kind_ == 0) return __ldg(task_.channels + kChunk * chunk + r + 8 * (i / 2));
    return 64 * (chunk >> 2) + 8 * r + 2 * (chunk & 3) + i / 2;
  }

  const MergeTask& task_;
  const int kind_;
  const bool uniform_;
  int item_;
  int tile_ = 0;
  int first_, second_;
  float4 sum_ = {0, 0, 0, 0};
};

inline constexpr int kFewParts = 4;

// Sums outputs of all parts of a kind into sums[head][channel], in an order that does not vary.
// `weights`: [part][8].
__device__ __forceinline__ void SumRecords(const MergeTask& task, int kind, const float* weights,
                                           float4* scratch, float* sums) {
  const int parts = task.parts[kind];
  const int items = RecordItem::Count(task, kind);
  const auto outputs = [&](int part) {
    return reinterpret_cast<const float4*>(task.Record(kind, part) + 16);
  };
  if (parts <= kFewParts) {
    // A thread takes all parts of an item.
#pragma unroll 1
    for (int i = threadIdx.x; parts > 0 && i < items; i += kAttentionThreads) {
      float4 o[kFewParts];
#pragma unroll
      for (int part = 0; part < kFewParts; ++part) {
        if (part < parts) o[part] = __ldcg(outputs(part) + i);
      }
      RecordItem item(task, kind, i);
#pragma unroll
      for (int part = 0; part < kFewParts; ++part) {
        if (part < parts) item.Add(o[part], weights + 8 * part);
      }
      item.Store(sums);
    }
    return;
  }
  // Every warp takes every fourth part; then thread i adds up what the warps have of item i.
  static_assert(kItemsAtOnce == kAttentionWarps);
  const int warp = threadIdx.x >> 5;
  const int lane = threadIdx.x & 31;
#pragma unroll 1
  for (int base = 0; base < items; base += 32 * kItemsAtOnce) {
#pragma unroll 1
    for (int i = 0; i < kItemsAtOnce; ++i) {
      // Beyond the last item: any that is there.
      const int at = min(base + 32 * i + lane, items - 1);
      RecordItem item(task, kind, at);
#pragma unroll 8
      for (int part = warp; part < parts; part += kAttentionWarps) {
        item.Add(__ldcg(outputs(part) + at), weights + 8 * part);
      }
      scratch[(warp * kItemsAtOnce + i) * 32 + lane] = item.sum();
    }
    __syncthreads();
    const int at = base + threadIdx.x;
    if (at < items) {
      RecordItem item(task, kind, at);
      float4& all = item.sum();
#pragma unroll
      for (int w = 0; w < kAttentionWarps; ++w) {
        const float4 o = scratch[w * kItemsAtOnce * 32 + threadIdx.x];
        all.x += o.x;
        all.y += o.y;
        all.z += o.z;
        all.w += o.w;
      }
      item.Store(sums);
    }
    __syncthreads();
  }
}

// to[head][channel] += sums[head][j] times the transposed rotation. Every warp takes a quarter of
// all j; what they have is added up in an order that does not vary. A function of its own, as it
// must not take registers from what units need.
static __device__ __noinline__ void AddTurned(const float* rotation, int d, int heads,
                                              const float* sums, float4* scratch, float* to) {
  constexpr int kHeads = 4;  // at once
  constexpr int kLaneChannels = 4;
  constexpr int kChannels = 32 * kLaneChannels;
  static_assert(kHeads * kAttentionWarps * 32 <= kAttentionThreads * kItemsAtOnce);
  const int warp = threadIdx.x >> 5;
  const int lane = threadIdx.x & 31;
  const int quarter = (d / kAttentionWarps + 3) & ~3;
  const int end = min(quarter * (warp + 1), d);
#pragma unroll 1
  for (int h = 0; h < heads; h += kHeads) {
#pragma unroll 1
    for (int first = 0; first < d; first += kChannels) {
      float all[kHeads][kLaneChannels] = {};
      const int channel = first + kLaneChannels * lane;
#pragma unroll 4
      for (int j = quarter * warp; channel < d && j < end; j += 4) {
        float4 u[4];
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          u[x] = __ldg(reinterpret_cast<const float4*>(rotation + (j + x) * d + channel));
        }
#pragma unroll
        for (int head = 0; head < kHeads; ++head) {
          const float4 four = *reinterpret_cast<const float4*>(sums + (h + head) * d + j);
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
      __syncthreads();
#pragma unroll
      for (int head = 0; head < kHeads; ++head) {
        scratch[(warp * kHeads + head) * 32 + lane] = {all[head][0], all[head][1], all[head][2],
                                                       all[head][3]};
      }
      __syncthreads();
      const auto* parts = reinterpret_cast<const float*>(scratch);
      for (int i = threadIdx.x; i < kHeads * kChannels; i += kAttentionThreads) {
        const int own = first + i % kChannels;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kAttentionWarps; ++w) sum += parts[kHeads * kChannels * w + i];
        if (own < d) to[(h + i / kChannels) * d + own] += sum;
      }
    }
  }
  __syncthreads();
}

// The whole block. `write(head, channel, value)` gets results, `write_lse(head, value)` the log of
// the softmax's sum.
template <typename Write, typename WriteLse>
__device__ __forceinline__ void MergeGroup(const MergeTask& task, float* shared, Write write,
                                           WriteLse write_lse) {
  const int parts = task.parts[0] + task.parts[1];
  const int d = task.head_dim;
  auto* const items = reinterpret_cast<float4*>(shared);
  float* const weights = shared + 4 * kAttentionThreads * kItemsAtOnce;  // [parts][8]: maxima first
  float* const part_sums = weights + 8 * parts;                          // [parts][8]
  float* const scratch = part_sums + 8 * parts;                          // [threads]
  float* const totals = scratch + kAttentionThreads;
  float* const compact = totals + 8;  // [8][d]
  float* const exact = compact + 8 * d;
  const auto record = [&](int part) {
    return part < task.parts[0] ? task.Record(0, part) : task.Record(1, part - task.parts[0]);
  };
  const int tid = threadIdx.x;
  float largest = kNoScore;
#pragma unroll 2
  for (int i = tid; i < 8 * parts; i += kAttentionThreads) {  // a thread stays with one head
    const float* own = record(i >> 3) + (i & 7);
    weights[i] = __ldcg(own);
    part_sums[i] = __ldcg(own + 8);
    largest = fmaxf(largest, weights[i]);
  }
  scratch[tid] = largest;
  for (int i = tid; i < 16 * d; i += kAttentionThreads) compact[i] = 0;
  __syncthreads();
  largest = kNoScore;
#pragma unroll
  for (int i = 0; i < kAttentionThreads; i += 8) largest = fmaxf(largest, scratch[i + (tid & 7)]);
  __syncthreads();
  float total = 0;
  for (int i = tid; i < 8 * parts; i += kAttentionThreads) {
    weights[i] = Exp2(weights[i] - largest);
    total += weights[i] * part_sums[i];
  }
  scratch[tid] = total;
  __syncthreads();
  if (tid < 8) {
    float all = 0;
    for (int i = tid; i < kAttentionThreads; i += 8) all += scratch[i];
    totals[tid] = all;
    if (tid < task.heads) write_lse(tid, (largest + log2f(all)) * 0.6931471805599453f);
  }
  SumRecords(task, 0, weights, items, compact);
  SumRecords(task, 1, weights + 8 * task.parts[0], items, exact);
  __syncthreads();
  const bool turned = task.rotation != nullptr && task.parts[0] > 0;
  if (turned) AddTurned(task.rotation, d, task.heads, compact, items, exact);
  for (int i = tid; i < task.heads * d; i += kAttentionThreads) {
    const int head = i / d;
    write(head, i - head * d, (exact[i] + (turned ? 0.0f : compact[i])) / totals[head]);
  }
}

}  // namespace fourierkv::kernels
