// How a block works on units of uniform heads: Worker's functions for them.

#pragma once

#include <cstdint>

#include "kernels/attention_uniform.cuh"
#include "kernels/attention_worker.cuh"

namespace fourierkv::kernels {

// RunCompact for uniform heads: K of the next unit is copied while V of this one is worked on, and
// the other way round; unless both have one place in turn. `segment` is this warp's first, if it
// has any.
template <int kBlocks, int kLogS, ElementType kType, int kUniformBits>
__device__ __forceinline__ void Worker<kBlocks, kLogS, kType, kUniformBits>::RunUniform(
    const Piece& piece, int first, int last, SegmentRef segment) {
  const UniformPart k = program()->uniform_k;
  const UniformPart v = program()->uniform_v;
  const int tiles = (heads_ + kTileHeads - 1) / kTileHeads;
  const bool in_turn = params_.shared.uniform_v == 0;
  constexpr int kRow = kUnitTokens * kUniformBits / 8;
  const int k_bytes = k.small_bytes + k.residents * kRow;
  const int v_bytes = v.small_bytes + v.residents * kRow;
  const int last_unit = last - first - warp_ - 1;  // from this warp's first on
  if (last_unit >= 0) {
    k_copy_.Start(segment.k + k.source, k_bytes, lane_);
    if (!in_turn) v_copy_.Start(segment.v + v.source, v_bytes, lane_);
  }
  const int query_bytes = UniformQueryBytes<kUniformBits>(k);
  ArrangeQueries(k, tiles, query_bytes, shared_ + params_.shared.queries);
  const uint32_t queries = SharedAddress(shared_ + params_.shared.queries);
  const uint32_t k_memory = SharedAddress(warp_memory_);
  const uint32_t v_memory = k_memory + params_.shared.uniform_v;
  const uint32_t all_outputs = SharedAddress(all_outputs_);
  const SegmentRef* const segments =
      user_.segments + user_.segment_offsets[piece.sequence] + first + warp_;
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
  for (int u = 0; u <= last_unit; u += kAttentionWarps) {
    const bool more = u + kAttentionWarps <= last_unit;
    // Found in the cache, as neighbours stand together.
    const uint8_t* const next_k = LoadPointer(&segments[min(u + kAttentionWarps, last_unit)].k);
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
        v_copy_.Start(LoadPointer(&segments[u + kAttentionWarps].v) + v.source, v_bytes, lane_);
      }
    }
  }
}

// Queries of all tiles, and a softmax for each warp that has seen nothing.
template <int kBlocks, int kLogS, ElementType kType, int kUniformBits>
__device__ __forceinline__ void Worker<kBlocks, kLogS, kType, kUniformBits>::ArrangeQueries(
    const UniformPart& k, int tiles, int query_bytes, uint8_t* to) {
  const auto* channels = reinterpret_cast<const int16_t*>(shared_ + program()->k_channels);
  for (int tile = 0; tile < tiles; ++tile) {
    const int head = kTileHeads * tile + (lane_ >> 3);
    const float inverse = 1.0f / norms()[head];
    const float* const staged = staged_query(head);
    ArrangeUniformQueries<kUniformBits>(to + tile * query_bytes, k, channels,
                                        [&](int channel) { return staged[channel] * inverse; });
  }
  if (lane_ < 2 * kGroupHeads) stats()[lane_] = lane_ < kGroupHeads ? kNoScore : 0.0f;
  FinishQueries(program()->v_chunks + 1);
}

// LeaveRecord for uniform heads, whose outputs and softmax are in shared memory.
template <int kBlocks, int kLogS, ElementType kType, int kUniformBits>
__device__ __forceinline__ void Worker<kBlocks, kLogS, kType, kUniformBits>::LeaveUniformRecord(
    float* record) {
  const auto* const stats = reinterpret_cast<const float*>(shared_ + params_.shared.stats);
  const UniformPart& v = program()->uniform_v;
  const int items = UniformOutputs::Floats(v) / 4;
  __syncthreads();
  const auto weights = [&](int head, float(&weight)[kAttentionWarps], float* most) {
    *most = kNoScore;
#pragma unroll
    for (int w = 0; w < kAttentionWarps; ++w) *most = fmaxf(*most, stats[16 * w + head]);
#pragma unroll
    for (int w = 0; w < kAttentionWarps; ++w) weight[w] = Exp2(stats[16 * w + head] - *most);
  };
  if (threadIdx.x < kGroupHeads) {
    float weight[kAttentionWarps], most;
    weights(threadIdx.x, weight, &most);
    float total = 0;
#pragma unroll
    for (int w = 0; w < kAttentionWarps; ++w) total += weight[w] * stats[16 * w + 8 + threadIdx.x];
    __stcg(record + threadIdx.x, most);
    __stcg(record + 8 + threadIdx.x, total);
  }
  const int tiles = (heads_ + kTileHeads - 1) / kTileHeads;
  for (int item = threadIdx.x; item < tiles * items; item += kAttentionThreads) {
    const int tile = item >= items;
    const int2 heads = UniformOutputs::HeadsOf(v, item - tile * items);
    float first[kAttentionWarps], second[kAttentionWarps], most;
    weights(kTileHeads * tile + heads.x, first, &most);
    weights(kTileHeads * tile + heads.y, second, &most);
    float4 all = {0, 0, 0, 0};
#pragma unroll
    for (int w = 0; w < kAttentionWarps; ++w) {
      const auto* outputs = reinterpret_cast<const float4*>(
          shared_ + params_.shared.warps + w * params_.shared.warp_bytes + params_.shared.outputs);
      const float4 o = outputs[item];
      all.x = fmaf(o.x, first[w], all.x);
      all.y = fmaf(o.y, first[w], all.y);
      all.z = fmaf(o.z, second[w], all.z);
      all.w = fmaf(o.w, second[w], all.w);
    }
    __stcg(reinterpret_cast<float4*>(record + 16) + item, all);
  }
}

}  // namespace fourierkv::kernels
