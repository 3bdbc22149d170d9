// What blocks leave of their parts of a piece, and how the last one to finish makes results of it.

#pragma once

#include <cstdint>

#include "kernels/attention_outputs.cuh"
#include "kernels/attention_program.h"
#include "kernels/fourier_attention.h"
#include "kernels/work_split.cuh"

namespace fourierkv::kernels {

inline constexpr int kAttentionWarps = 4;
inline constexpr int kAttentionThreads = 32 * kAttentionWarps;

// Partial results of 8 heads: [8] maxima, [8] sums, then outputs as a warp has them.
__host__ __device__ inline int64_t RecordFloats(int chunks) {
  return 16 + 128 * static_cast<int64_t>(chunks);
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

// Sums outputs of all parts of a kind into sums[head][channel], in an order that does not vary:
// every warp takes every fourth part.
__device__ __forceinline__ void SumRecords(const MergeTask& task, int kind, const float* weights,
                                           float4* scratch, float* sums) {
  const int items = task.chunks[kind] << task.log_lanes;
  const int log_columns = task.log_lanes - 3;
  const int warp = threadIdx.x >> 5;
  const int lane = threadIdx.x & 31;
  const int head = 2 * (lane & ((1 << log_columns) - 1));
  if (task.parts[kind] == 0) return;
#pragma unroll 1
  for (int base = 0; base < items; base += 32 * kItemsAtOnce) {
    float4 acc[kItemsAtOnce] = {};
#pragma unroll 2
    for (int part = warp; part < task.parts[kind]; part += kAttentionWarps) {
      const auto* outputs = reinterpret_cast<const float4*>(task.Record(kind, part) + 16);
      const float2 w = *reinterpret_cast<const float2*>(weights + 8 * part + head);
      float4 o[kItemsAtOnce];
#pragma unroll
      for (int i = 0; i < kItemsAtOnce; ++i) {
        // Beyond the last item: any that is there.
        o[i] = __ldcg(outputs + min(base + 32 * i + lane, items - 1));
      }
#pragma unroll
      for (int i = 0; i < kItemsAtOnce; ++i) {
        acc[i].x = fmaf(o[i].x, w.x, acc[i].x);
        acc[i].y = fmaf(o[i].y, w.y, acc[i].y);
        acc[i].z = fmaf(o[i].z, w.x, acc[i].z);
        acc[i].w = fmaf(o[i].w, w.y, acc[i].w);
      }
    }
#pragma unroll
    for (int i = 0; i < kItemsAtOnce; ++i) {
      scratch[(warp * kItemsAtOnce + i) * 32 + lane] = acc[i];
    }
    __syncthreads();
    // Warp i adds up items i of all warps.
    static_assert(kItemsAtOnce == kAttentionWarps);
    const int item = base + threadIdx.x;
    if (item < items) {
      float4 all = {0, 0, 0, 0};
#pragma unroll
      for (int w = 0; w < kAttentionWarps; ++w) {
        const float4 o = scratch[w * kItemsAtOnce * 32 + threadIdx.x];
        all.x += o.x;
        all.y += o.y;
        all.z += o.z;
        all.w += o.w;
      }
      const int chunk = item >> task.log_lanes;
      const int r = (item >> log_columns) & 7;
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const int channel = kind == 0 ? __ldg(task.channels + 16 * chunk + r + 8 * row)
                                      : 64 * (chunk >> 2) + 8 * r + 2 * (chunk & 3) + row;
        if (channel < 0 || channel >= task.head_dim) continue;
        sums[head * task.head_dim + channel] = row == 0 ? all.x : all.z;
        sums[(head + 1) * task.head_dim + channel] = row == 0 ? all.y : all.w;
      }
    }
    __syncthreads();
  }
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
  for (int channel = tid; channel < d; channel += kAttentionThreads) {
    float out[8];
#pragma unroll
    for (int head = 0; head < 8; ++head) {
      out[head] = exact[head * d + channel];
      if (task.rotation == nullptr) out[head] += compact[head * d + channel];
    }
    if (task.rotation != nullptr && task.parts[0] > 0) {
#pragma unroll 32
      for (int j = 0; j < d; ++j) {
        const float u = __ldg(task.rotation + static_cast<int64_t>(j) * d + channel);
#pragma unroll
        for (int head = 0; head < 8; ++head) out[head] = fmaf(compact[head * d + j], u, out[head]);
      }
    }
#pragma unroll
    for (int head = 0; head < 8; ++head) {
      if (head < task.heads) write(head, channel, out[head] / totals[head]);
    }
  }
}

}  // namespace fourierkv::kernels
