// How results come of records: the last team to leave one of a group adds them up. Of many parts
// every 16 become one first, by the last of these.

#pragma once

#include <cstdint>

#include "kernels/attention_merge.cuh"
#include "kernels/attention_pages.cuh"
#include "kernels/attention_params.cuh"
#include "kernels/attention_program.h"
#include "kernels/attention_team.cuh"

namespace fourierkv::kernels {

// Everything that has to be known to make results of a group's records.
struct MergeTask {
  const uint8_t* plan;
  const HeadProgram* program;  // in the plan
  bool uniform;
  int log_lanes;
  int head_dim;
  int heads;
  int row;      // of the first head
  Results out;  // of all
  float* lse;   // may be null
  // Memory that is free once the team's record is there.
  float* compact;  // [heads][head_dim] each
  float* exact;
  float4* scratch;  // kTurnedScratchBytes, for a team of several warps

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
// so on. `part`: which of `own` this team has left; `counters`: the piece's own, of workers. False
// if others are not there yet. Rarely needed.
static __device__ __noinline__ bool ReduceParts(const Team& team, const MergeTask& task, bool pages,
                                                int part, PartRecords* own, int32_t* counters) {
  const RecordShape shape = task.Shape(pages);
  // Nodes of a level have the counters of their first parts, of the next level of the second ones,
  // and so on: a node with more than one part has these.
#pragma unroll 1
  while (own->count > kMergedParts) {
    const int node = part / kMergedParts;
    const int first = node * kMergedParts;
    PartRecords parts = *own;
    parts.count = min(kMergedParts, own->count - first);
    parts.first = own->first + first * own->apart;
    if (parts.count > 1) {
      if (!LastToArrive(team, counters + first * own->apart, parts.count)) return false;
      PartWeights weights;
      weights.Load(parts, team.lane());
      const float largest = weights.Largest();
      const float total = weights.Weigh(largest);
      float* const to = parts.Of(0);
      SumParts(parts, weights, shape, team, [&](int item, const float4& sum) {
        __stcg(reinterpret_cast<float4*>(to + 16) + item, sum);
      });
      team.Sync();  // all have read maxima and sums
      if (team.thread < 8) {
        __stcg(to + team.thread, largest);
        __stcg(to + 8 + team.thread, total);
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
static __device__ __noinline__ void MergeParts(const Team& team, const MergeTask& task,
                                               const PartRecords (&parts)[2]) {
  const int d = task.head_dim;
  const int lane = team.lane();
  PartWeights weights[2];
  weights[0].Load(parts[0], lane);
  weights[1].Load(parts[1], lane);
  const float largest = fmaxf(weights[0].Largest(), weights[1].Largest());
  const float total = weights[0].Weigh(largest) + weights[1].Weigh(largest);
  if (task.lse != nullptr && team.thread < task.heads) {
    task.lse[task.row + team.thread] = (largest + log2f(total)) * 0.6931471805599453f;
  }
  const float inverse = 1.0f / total;
  const uint32_t rotation = parts[0].count > 0 ? __ldg(&task.program->v_rotation) : 0;
#pragma unroll 1
  for (int kind = 0; kind < 2; ++kind) {
    const PartRecords own = kind == 0 ? parts[0] : parts[1];
    if (own.count == 0) continue;
    PartWeights scaled = kind == 0 ? weights[0] : weights[1];
    scaled.Scale(inverse);
    const RecordShape shape = task.Shape(kind == 1);
    float* const sums = kind == 0 ? task.compact : task.exact;
    SumParts(own, scaled, shape, team,
             [&](int item, const float4& sum) { shape.Store(item, sum, sums); });
  }
  if (rotation != 0) {
    if (parts[1].count == 0) {
      for (int i = team.thread; i < task.heads * d / 4; i += team.threads()) {
        reinterpret_cast<float4*>(task.exact)[i] = {0, 0, 0, 0};
      }
    }
    team.Sync();
    for (int head = 0; head < task.heads; head += 4) {
      AddTurned(team, reinterpret_cast<const float*>(task.plan + rotation), d, head, task.compact,
                task.scratch, task.exact);
    }
  }
  team.Sync();
  const bool with_compact = parts[0].count > 0 && rotation == 0;
  const bool with_exact = parts[1].count > 0 || rotation != 0;
#pragma unroll 1
  for (int i = 8 * team.thread; i < task.heads * d; i += 8 * team.threads()) {
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

// The team leaves the record of `entry`, and makes the group's results if it is the last.
__device__ __forceinline__ void FinishPart(const Team& team, const KernelParams& params,
                                           const AttentionEntry* entry, const WarpResults& results,
                                           const MergeTask& task) {
  const bool pages = (__ldg(&entry->flags) & kPages) != 0;
  const int4 where = __ldg(reinterpret_cast<const int4*>(entry) + 2);
  const int4 who = __ldg(reinterpret_cast<const int4*>(entry) + 3);
  PartRecords parts[2] = {{params.records, params.record_floats, where.x, where.z, 1},
                          {params.records, params.record_floats, where.y, where.w, 1}};
  LeaveRecord(team, results, task.Shape(pages), parts[pages ? 1 : 0].Of(who.x));
  if (max(where.x, where.y) > kMergedParts) {
    PartRecords own = pages ? parts[1] : parts[0];
    if (own.count > kMergedParts &&
        !ReduceParts(team, task, pages, who.x, &own, params.worker_counters + who.z)) {
      return;
    }
#pragma unroll
    for (PartRecords& kind : parts) {
      while (kind.count > kMergedParts) {
        kind.count = (kind.count + kMergedParts - 1) / kMergedParts;
        kind.apart *= kMergedParts;
      }
    }
  }
  const int expected = parts[0].count + parts[1].count;
  if (expected == 1) {
    team.Sync();  // what the record's threads have written
  } else if (!LastToArrive(team, params.group_counters + who.w, expected)) {
    return;
  }
  MergeParts(team, task, parts);
}

}  // namespace fourierkv::kernels
