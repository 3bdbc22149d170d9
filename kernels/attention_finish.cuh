// How results come of records: the last worker to leave one of a group adds them up. Of many parts
// every 16 become one first, by the last of these.

#pragma once

#include <cstdint>

#include "kernels/attention_arrival.cuh"
#include "kernels/attention_merge.cuh"
#include "kernels/attention_pages.cuh"
#include "kernels/attention_params.cuh"
#include "kernels/attention_program.h"

namespace fourierkv::kernels {

// Everything that has to be known to make results of a group's records.
struct MergeTask {
  PartRecords parts[2];  // of its units, of its pages
  const uint8_t* plan;
  const HeadProgram* program;  // in the plan
  bool uniform;
  int log_lanes;
  int head_dim;
  int heads;
  int row;      // of the first head
  Results out;  // of all
  float* lse;   // may be null
  // The memory of a worker that is free between its entries.
  float* compact;  // [heads][head_dim] each
  float* exact;
  float4* scratch;  // [kAttentionThreads 4], of workers of several warps

  __device__ __forceinline__ RecordShape Shape(bool pages) const {
    RecordShape shape = {};
    shape.pages = pages;
    shape.uniform = !pages && uniform;
    shape.log_lanes = log_lanes;
    shape.heads = heads;
    shape.head_dim = head_dim;
    shape.channels = reinterpret_cast<const int16_t*>(plan + __ldg(&program->v_channels));
    shape.chunks = pages ? 4 * PageShape(head_dim).blocks : __ldg(&program->v_chunks);
    if (shape.uniform) shape.v = LoadPart(&program->uniform_v);
    return shape;
  }
};

// While there are more than kMergedParts: every so many become one, in the place of the first, and
// so on. `part`: which of `own` this worker has left; `counters`: of workers, from the one on that
// has part 0. False if others are not there yet. Rarely needed.
template <int kWarps>
static __device__ __noinline__ bool ReduceParts(const MergeTask& task, bool pages, int part,
                                                PartRecords* own, int32_t* counters, int thread) {
  const RecordShape shape = task.Shape(pages);
  // Nodes of a level have the counters of their first parts' workers; of the next level, of the
  // second parts', and so on: no node with more than one part has another piece's.
#pragma unroll 1
  while (own->count > kMergedParts) {
    const int node = part / kMergedParts;
    const int first = node * kMergedParts;
    PartRecords parts = *own;
    parts.count = min(kMergedParts, own->count - first);
    parts.first = own->IndexOf(first);
    parts.others = own->others + first * own->apart;
    if (parts.count > 1) {
      if (!LastToArrive<kWarps>(counters + first * own->apart, parts.count, thread)) return false;
      PartWeights weights;
      weights.Load(parts, thread & 31);
      const float largest = weights.Largest();
      const float total = weights.Weigh(largest);
      float* const to = parts.Of(0);
      SumParts<kWarps>(parts, weights, shape, thread, [&](int item, const float4& sum) {
        __stcg(reinterpret_cast<float4*>(to + 16) + item, sum);
      });
      WorkerSync<kWarps>();  // all have read maxima and sums
      if (thread < 8) {
        __stcg(to + thread, largest);
        __stcg(to + 8 + thread, total);
      }
    }
    ++counters;
    part = node;
    own->count = (own->count + kMergedParts - 1) / kMergedParts;
    own->apart *= kMergedParts;
  }
  return true;
}

// Adds up all records of a group: its results. A function of its own, as AddTurned.
template <int kWarps>
static __device__ __noinline__ void MergeParts(const MergeTask& task, int thread) {
  const int d = task.head_dim;
  const int lane = thread & 31;
  PartWeights weights[2];
  weights[0].Load(task.parts[0], lane);
  weights[1].Load(task.parts[1], lane);
  const float largest = fmaxf(weights[0].Largest(), weights[1].Largest());
  const float total = weights[0].Weigh(largest) + weights[1].Weigh(largest);
  if (task.lse != nullptr && thread < task.heads) {
    task.lse[task.row + thread] = (largest + log2f(total)) * 0.6931471805599453f;
  }
  const float inverse = 1.0f / total;
  const uint32_t rotation = task.parts[0].count > 0 ? __ldg(&task.program->v_rotation) : 0;
#pragma unroll 1
  for (int kind = 0; kind < 2; ++kind) {
    const PartRecords own = kind == 0 ? task.parts[0] : task.parts[1];
    if (own.count == 0) continue;
    PartWeights scaled = kind == 0 ? weights[0] : weights[1];
    scaled.Scale(inverse);
    const RecordShape shape = task.Shape(kind == 1);
    float* const sums = kind == 0 ? task.compact : task.exact;
    SumParts<kWarps>(own, scaled, shape, thread,
                     [&](int item, const float4& sum) { shape.Store(item, sum, sums); });
  }
  if (rotation != 0) {
    if (task.parts[1].count == 0) {
      for (int i = thread; i < task.heads * d / 4; i += 32 * kWarps) {
        reinterpret_cast<float4*>(task.exact)[i] = {0, 0, 0, 0};
      }
    }
    WorkerSync<kWarps>();
    for (int head = 0; head < task.heads; head += 4) {
      AddTurned<kWarps>(reinterpret_cast<const float*>(task.plan + rotation), d, head, task.compact,
                        task.scratch, task.exact, thread);
    }
  }
  WorkerSync<kWarps>();
  const bool with_compact = task.parts[0].count > 0 && rotation == 0;
  const bool with_exact = task.parts[1].count > 0 || rotation != 0;
#pragma unroll 1
  for (int i = 8 * thread; i < task.heads * d; i += 8 * 32 * kWarps) {
    float values[8];
#pragma unroll
    for (int x = 0; x < 8; x += 4) {
      float4 four = {0, 0, 0, 0};
      if (with_compact) four = *reinterpret_cast<const float4*>(task.compact + i + x);
      if (with_exact) {
        const float4 own = *reinterpret_cast<const float4*>(task.exact + i + x);
        four = {four.x + own.x, four.y + own.y, four.z + own.z, four.w + own.w};
      }
      values[x] = four.x;
      values[x + 1] = four.y;
      values[x + 2] = four.z;
      values[x + 3] = four.w;
    }
    task.out.Store(static_cast<int64_t>(task.row) * d + i, values);
  }
}

// A worker has written the record of `entry`; `task` has all but the parts.
template <int kWarps>
__device__ __forceinline__ void FinishPart(const KernelParams& params, const AttentionEntry* entry,
                                           MergeTask& task, int thread) {
  const int flags = __ldg(&entry->flags);
  const int4 where = __ldg(reinterpret_cast<const int4*>(entry) + 2);
  const int4 others = __ldg(reinterpret_cast<const int4*>(entry) + 3);
  task.parts[0] = {params.records, params.record_floats, where.x, where.z, others.x, 1};
  task.parts[1] = {params.records, params.record_floats, where.y, where.w, others.y, 1};
  if (max(where.x, where.y) > kMergedParts) {
    const bool pages = (flags & kPages) != 0;
    PartRecords own = pages ? task.parts[1] : task.parts[0];
    if (own.count > kMergedParts &&
        !ReduceParts<kWarps>(task, pages, others.z, &own, params.worker_counters + own.others,
                             thread)) {
      return;
    }
#pragma unroll
    for (PartRecords& kind : task.parts) {
      while (kind.count > kMergedParts) {
        kind.count = (kind.count + kMergedParts - 1) / kMergedParts;
        kind.apart *= kMergedParts;
      }
    }
  }
  const int expected = task.parts[0].count + task.parts[1].count;
  if (expected == 1) {
    WorkerSync<kWarps>();  // what the record's threads have written
  } else if (!LastToArrive<kWarps>(params.group_counters + others.w, expected, thread)) {
    return;
  }
  MergeParts<kWarps>(task, thread);
}

}  // namespace fourierkv::kernels
