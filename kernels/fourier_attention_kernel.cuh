// The attention kernel; docs/kernels.md.

#pragma once

#include <cstdint>

#include "kernels/attention_merge.cuh"
#include "kernels/attention_pages.cuh"
#include "kernels/attention_params.cuh"
#include "kernels/attention_program.h"
#include "kernels/attention_uniform_worker.cuh"
#include "kernels/attention_worker.cuh"
#include "kernels/dependent_launch.cuh"
#include "kernels/fourier_attention.h"
#include "kernels/work_split.cuh"

namespace fourierkv::kernels {

// The block whose part of a group is the last makes the group's results.
__device__ __forceinline__ void FinishGroup(const KernelParams& params, const WorkLine& line,
                                            int64_t total, const Piece& piece, uint8_t* shared) {
  const FourierAttentionParams& user = params.user;
  MergeTask task;
  DescribePiece(line, total, PieceOf(line, piece.sequence, piece.group, false), &task);
  DescribePiece(line, total, PieceOf(line, piece.sequence, piece.group, true), &task);
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* const counter =
        params.counters + static_cast<int64_t>(piece.sequence) * line.groups + piece.group;
    const int expected = task.parts[0] + task.parts[1];
    last = atomicAdd(counter, 1) == expected - 1;
    if (last) *counter = 0;  // for the next launch
  }
  __syncthreads();
  if (!last) return;
  __threadfence();

  const int kv_head = piece.group / params.groups_per_head;
  const int heads_per_kv = user.query_heads / user.plan.kv_heads;
  const int inner = piece.group % params.groups_per_head * kGroupHeads;
  const auto* program = reinterpret_cast<const HeadProgram*>(user.plan.data + user.plan.programs +
                                                             kv_head * user.plan.program_bytes);
  task.records = params.records;
  task.record_floats = params.record_floats;
  task.chunks[0] = program->v_chunks;
  task.chunks[1] = 4 * PageShape(user.plan.head_dim).blocks;
  task.log_lanes = params.shared.log_lanes;
  task.uniform = user.plan.uniform_bits != 0;
  if (task.uniform) task.v = program->uniform_v;
  task.heads = min(kGroupHeads, heads_per_kv - inner);
  task.head_dim = user.plan.head_dim;
  task.channels = reinterpret_cast<const int16_t*>(user.plan.data + program->v_channels);
  task.rotation = program->v_rotation == 0
                      ? nullptr
                      : reinterpret_cast<const float*>(user.plan.data + program->v_rotation);
  const int64_t row =
      static_cast<int64_t>(piece.sequence) * user.query_heads + kv_head * heads_per_kv + inner;
  MergeGroup(
      task, reinterpret_cast<float*>(shared + params.shared.warps),
      [&](int head, int channel, float value) {
        StoreOutput(user, (row + head) * user.plan.head_dim + channel, value);
      },
      [&](int head, float value) {
        if (user.lse != nullptr) user.lse[row + head] = value;
      });
}

// Sequences without a single token.
__device__ __forceinline__ void WriteEmpty(const FourierAttentionParams& user,
                                           const WorkLine& line) {
  WaitForPrerequisites();
  for (int b = blockIdx.x; b < user.batch; b += gridDim.x) {
    if (line.Before(b) != line.Before(b + 1)) continue;
    const int values = user.query_heads * user.plan.head_dim;
    for (int i = threadIdx.x; i < values; i += kAttentionThreads) {
      StoreOutput(user, static_cast<int64_t>(b) * values + i, 0.0f);
    }
    if (user.lse == nullptr) continue;
    for (int i = threadIdx.x; i < user.query_heads; i += kAttentionThreads) {
      user.lse[b * user.query_heads + i] = -INFINITY;
    }
  }
}

// The sequence that cost `x` lies in.
__device__ __forceinline__ int FindSequence(const WorkLine& line, int64_t x) {
  int sequence = 0;
  for (int base = 1; base < line.batch; base += kAttentionThreads) {
    const int b = base + threadIdx.x;
    const int before = __syncthreads_count(b < line.batch && line.Before(b) * line.groups <= x);
    sequence += before;
    if (before < kAttentionThreads) break;
  }
  return sequence;
}

template <int kBlocks, int kLogS, ElementType kType, int kUniformBits>
__global__ void __launch_bounds__(kAttentionThreads, kUniformBits == 16 ? 2 : 3)
    FourierAttentionKernel(const __grid_constant__ KernelParams params) {
  extern __shared__ __align__(128) uint8_t shared[];
  LetDependentsStart();
  const FourierAttentionParams& user = params.user;
  WorkLine line;
  line.segment_offsets = user.segments != nullptr ? user.segment_offsets : nullptr;
  line.page_offsets = user.pages != nullptr ? user.page_offsets : nullptr;
  line.batch = user.batch;
  line.groups = user.plan.kv_heads * params.groups_per_head;
  line.units_per_segment = params.units_per_segment;
  line.unit_cost = user.plan.segment_cost;
  line.page_cost = user.plan.page_cost;
  const int64_t total = line.Total();
  if (total == 0) return WriteEmpty(user, line);
  // Each warp should have a unit at least. Where there are few, fewer blocks have less to merge.
  const int64_t least = kAttentionWarps * line.LargestCost();
  const int64_t full = Quotient(total + least - 1, least);
  const int64_t blocks = gridDim.x;
  int64_t most =
      total < 3 * kAttentionWarps * line.SmallestCost() * blocks ? blocks * 2 / 3 : blocks;
  // Sequences of one length are cut alike, and no stretch has parts of two groups, if the number of
  // stretches is a multiple of all groups.
  const int64_t spare = most % (static_cast<int64_t>(line.batch) * line.groups);
  if (16 * spare < most) most -= spare;
  line.stretches = static_cast<int>(min(most, full));
  if (blockIdx.x >= line.stretches) return WriteEmpty(user, line);

  int64_t at = line.Start(total, blockIdx.x);
  const int64_t end = line.Start(total, blockIdx.x + 1);
  int sequence = FindSequence(line, at);
  __shared__ uint64_t barriers[2 * kAttentionWarps];
  Worker<kBlocks, kLogS, kType, kUniformBits> worker(params, shared, barriers);
  while (at < end) {
    const int64_t before = line.Before(sequence);
    const int64_t whole = line.Before(sequence + 1) - before;
    if (whole == 0) {
      ++sequence;
      continue;
    }
    const int group = static_cast<int>(Quotient(at - before * line.groups, whole));
    if (group >= line.groups) {
      ++sequence;
      continue;
    }
    Piece piece = PieceOf(line, sequence, group, false);
    if (at >= piece.end) piece = PieceOf(line, sequence, group, true);
    const int64_t to = min(end, piece.end);
    float* record =
        params.records + PartialOf(line, total, piece, blockIdx.x) * params.record_floats;
    worker.Run(piece, piece.UnitAt(at), piece.UnitAt(to), record);
    FinishGroup(params, line, total, piece, shared);
    at = to;
  }
  WriteEmpty(user, line);
}

using AttentionKernel = void (*)(KernelParams);

// Each in a source file of its own, as compiling them takes long.
AttentionKernel UniformKernel(ElementType type, int bits);
AttentionKernel Bf16Kernel(const AttentionPlanView& plan);
AttentionKernel Fp16Kernel(const AttentionPlanView& plan);

// For any basis_blocks of segments of kLogS tokens (0: any that a plan says).
template <ElementType kType, int kLogS>
AttentionKernel GenericAttentionKernel(const AttentionPlanView& plan) {
  if constexpr (kLogS == 8) {
    if (plan.basis_blocks == 0) return FourierAttentionKernel<0, kLogS, kType, 0>;
  }
  switch (plan.basis_blocks) {
    case 1:
      return FourierAttentionKernel<1, kLogS, kType, 0>;
    case 2:
      return FourierAttentionKernel<2, kLogS, kType, 0>;
    default:
      return FourierAttentionKernel<4, kLogS, kType, 0>;
  }
}

template <ElementType kType>
AttentionKernel UniformAttentionKernel(int bits) {
  switch (bits) {
    case 4:
      return FourierAttentionKernel<0, 8, kType, 4>;
    case 8:
      return FourierAttentionKernel<0, 8, kType, 8>;
    default:
      return FourierAttentionKernel<0, 8, kType, 16>;
  }
}

}  // namespace fourierkv::kernels
