// How a warp works on units of uniform heads: Worker's functions for them.

#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention_uniform.cuh"
#include "kernels/attention_worker.cuh"

namespace fourierkv::kernels {

// Starts the copies of an entry's first unit, if it has units, as the first thing that happens for
// it. What is in the places of parts is no longer needed.
template <int kBlocks, int kLogS, ElementType kType, int kUniformBits>
__device__ __forceinline__ void Worker<kBlocks, kLogS, kType, kUniformBits>::StartUniform(
    const AttentionEntry* entry) {
  const int4 who = __ldg(reinterpret_cast<const int4*>(entry));
  const int2 what = __ldg(reinterpret_cast<const int2*>(entry) + 2);
  const uint8_t* const far = far_program(who.y) + offsetof(HeadProgram, uniform_k);
  uint4 words = {};
  if (lane_ < 3) words = __ldg(reinterpret_cast<const uint4*>(far) + lane_);
  if ((who.x & kPages) != 0) return;
  const SegmentRef* const segment = user_.segments + what.x + what.y;
  const uint8_t* const keys = LoadPointer(&segment->k);
  const uint8_t* const values = LoadPointer(&segment->v);
  PrefetchForQueries(who);
  const auto* const parts = reinterpret_cast<const UniformPart*>(shared_ + params_.shared.program);
  __syncwarp();  // what is there was of the entry before
  if (lane_ < 3) reinterpret_cast<uint4*>(shared_ + params_.shared.program)[lane_] = words;
  __syncwarp();
  k_copy_.Start(keys + parts[0].source, UniformBytes<kUniformBits>(parts[0]), lane_);
  if (params_.shared.uniform_v != 0) {
    v_copy_.Start(values + parts[1].source, UniformBytes<kUniformBits>(parts[1]), lane_);
  }
}

// What comes from far behind the first copies: queries, their order, the basis.
template <int kBlocks, int kLogS, ElementType kType, int kUniformBits>
__device__ __forceinline__ void Worker<kBlocks, kLogS, kType, kUniformBits>::PrefetchForQueries(
    const int4& who) const {
  const AttentionPlanView& plan = user_.plan;
  const int far = 128 * lane_;
  const int log_size = user_.float_io ? 2 : 1;
  if (far < (who.z * plan.head_dim) << log_size) {
    const int64_t first = static_cast<int64_t>(who.w) * plan.head_dim << log_size;
    Prefetch(static_cast<const uint8_t*>(user_.q) + first + far);
  }
  if (far < plan.k_order_bytes) {
    Prefetch(plan.data + plan.k_order + who.y * plan.k_order_bytes + far);
  }
  Prefetch(plan.data + plan.k_basis + far);
  Prefetch(plan.data + plan.v_basis + far);
}

// RunCompact for uniform heads: `count` units, a segment each, from `first` of the table on. K of
// the next unit is copied while V of this one is worked on, and the other way round; unless both
// have one place in turn. The first copies have been started.
template <int kBlocks, int kLogS, ElementType kType, int kUniformBits>
__device__ __forceinline__ void Worker<kBlocks, kLogS, kType, kUniformBits>::RunUniform(int first,
                                                                                        int kv_head,
                                                                                        int count) {
  const UniformPart k = reinterpret_cast<const UniformPart*>(shared_ + params_.shared.program)[0];
  const UniformPart v = reinterpret_cast<const UniformPart*>(shared_ + params_.shared.program)[1];
  const int tiles = (heads_ + kTileHeads - 1) / kTileHeads;
  const bool in_turn = params_.shared.uniform_v == 0;
  const int k_bytes = UniformBytes<kUniformBits>(k);
  const int v_bytes = UniformBytes<kUniformBits>(v);
  const int last_unit = count - 1;
  const int query_bytes = UniformQueryBytes<kUniformBits>(k);
  ArrangeQueries(k, kv_head, tiles, query_bytes);
  FinishQueries(UniformOutputBytes());
  const uint32_t queries = SharedAddress(shared_ + params_.shared.queries);
  const uint32_t k_memory = SharedAddress(warp_memory_);
  const uint32_t v_memory = k_memory + params_.shared.uniform_v;
  const uint32_t all_outputs = SharedAddress(all_outputs_);
  const SegmentRef* const segments = user_.segments + first;
  const uint8_t* const k_basis = user_.plan.data + user_.plan.k_basis;
  const uint8_t* const v_basis = user_.plan.data + user_.plan.v_basis;
  constexpr float kConstant = 0.0625f;  // 1 / sqrt(256)
  const int head = lane_ & 3;
  const float w_factor =
      (lane_ >> 2) < v.coefficients
          ? __ldg(reinterpret_cast<const float*>(user_.plan.data + user_.plan.v_factors) +
                  (lane_ >> 2))
          : 0.0f;
  const UniformSoftmax softmax{stats(), stats() + kGroupHeads};
#pragma unroll 1
  for (int u = 0; u <= last_unit; ++u) {
    const bool more = u < last_unit;
    // Found in the cache, as neighbours stand together.
    const uint8_t* const next_k = LoadPointer(&segments[min(u + 1, last_unit)].k);
    k_copy_.Wait(!in_turn);
    const int reduced = kUniformBits == 16 ? 0 : ReduceScales(k_memory, k, lane_);
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      UniformScores scores;
      const typename UniformScorerOf<kUniformBits>::Type scorer(
          k_memory, k, reduced, queries + tile * query_bytes, kConstant, lane_);
      scorer.template Score<0>(scores, k_basis);
      scorer.template Score<1>(scores, k_basis);
      if (tile + 1 == tiles) {
        if (in_turn) {
          v_copy_.Start(LoadPointer(&segments[u].v) + v.source, v_bytes, lane_);
        } else if (more) {
          k_copy_.Start(next_k + k.source, k_bytes, lane_);
        }
      }
      const float norm = norms()[kTileHeads * tile + head];
      UniformWeights<kUniformBits> weights;
      const float largest =
          fmaf(norm, scorer.mean(),
               WeighUniform<kUniformBits>(scores, norm * scorer.unscale(), weights));
      float keep, count;
      softmax.Raise(kTileHeads * tile + head, largest, &keep, &count);
      float sum;
      const float w = BasisSums<kUniformBits>(weights, v_basis, lane_, &sum) * w_factor * count;
      __syncwarp();
      if (lane_ < kTileHeads) softmax.Add(kTileHeads * tile + head, largest, keep, count, sum);
      if (tile == 0) v_copy_.Wait(more && !in_turn && tiles == 1);
      const uint32_t outputs = all_outputs + 4 * tile * UniformOutputs::Floats(v);
      AddCoefficientOutputs<kUniformBits>(v_memory, v, w, keep, outputs, lane_);
      AddResidentOutputs<kUniformBits>(v_memory, v.small_bytes, v, weights, sum, keep, count,
                                       outputs, lane_);
    }
    if (more) {
      if (in_turn) {
        k_copy_.Start(next_k + k.source, k_bytes, lane_);
      } else {
        v_copy_.Start(LoadPointer(&segments[u + 1].v) + v.source, v_bytes, lane_);
      }
    }
  }
}

// Queries of all tiles, and a softmax that has seen nothing.
template <int kBlocks, int kLogS, ElementType kType, int kUniformBits>
__device__ __forceinline__ void Worker<kBlocks, kLogS, kType, kUniformBits>::ArrangeQueries(
    const UniformPart& k, int kv_head, int tiles, int query_bytes) {
  const AttentionPlanView& plan = user_.plan;
  const auto* const order =
      reinterpret_cast<const short4*>(plan.data + plan.k_order + kv_head * plan.k_order_bytes);
#pragma unroll 1
  for (int tile = 0; tile < tiles; ++tile) {
    const int head = kTileHeads * tile + (lane_ >> 3);
    const bool valid = head < heads_;
    const float* const staged = staged_queries() + head * plan.head_dim;
    const int exponent = QueryExponent<8>(staged, valid);
    const float inverse = PowerOfTwo(-exponent);
    if ((lane_ & 7) == 0) norms()[head] = NormOf(exponent);
    ArrangeUniformQueries<kUniformBits>(
        shared_ + params_.shared.queries + tile * query_bytes, UniformQueryGroups<kUniformBits>(k),
        order, lane_,
        [&](int channel) { return valid && channel >= 0 ? staged[channel] * inverse : 0.0f; });
  }
  if (lane_ < 2 * kGroupHeads) stats()[lane_] = lane_ < kGroupHeads ? kNoScore : 0.0f;
}

}  // namespace fourierkv::kernels
