// Attention of one query token directly on compact segments: K and V are never rebuilt.
//
// For a segment with basis B (S x M), for each query head of the group:
//   a = C_K (scale q_F)                                      M multiply-adds per spectral channel
//   s = B a + sum over resident j of (q_j scale_j) n_j + constant;   n: the stored integers
//   p = 2^(s - running max)
//   o_F += scale C_V^T (B^T p),   o_j += scale_j sum_t p_t n_jt + offset_j sum_t p_t
// Lanes run over tokens except in the small products with coefficients, where they run over
// channels.

#include <algorithm>
#include <limits>

#include "compute/backend/cpu/kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compute/backend/cpu/compact_attention_kernels.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come before the files that are compiled once per target.
#include "compute/backend/cpu/compact_outputs-inl.h"
#include "compute/backend/cpu/compact_scores-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fourierkv::cpu {
namespace HWY_NAMESPACE {

static void Scale(float* values, int64_t count, float factor) {
  const DF d;
  for (int64_t i = 0; i < count; i += kLanes) {
    hn::Store(hn::Mul(hn::Load(d, values + i), hn::Set(d, factor)), d, values + i);
  }
}

// What query head g has gathered so far was weighted relative to another max.
static void Rescale(const ChannelPlan& v, const RunState& state, int g, float factor) {
  Scale(state.linear + static_cast<int64_t>(g) * v.size, v.size, factor);
  for (int64_t j = 0; j < v.size - v.resident_start; ++j) {
    Scale(state.lanes + (j * state.group + g) * kLanes, kLanes, factor);
  }
  state.sum[g] *= factor;
}

// Turns scores of query heads g0 ... into weights; sums[g] is the sum of the segment's.
template <int GT>
HWY_INLINE void SegmentWeights(const ChannelPlan& v, const RunState& state, int g0, float* sums) {
  const DF d;
  const int64_t size = static_cast<int64_t>(v.tokens) * GT;
  float* weights = state.weights;
  VF largest[GT];
  HWY_UNROLL(4)
  for (int g = 0; g < GT; ++g) largest[g] = hn::Load(d, weights + g * kLanes);
  for (int64_t at = GT * kLanes; at < size; at += GT * kLanes) {
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) {
      largest[g] = hn::Max(largest[g], hn::Load(d, weights + at + g * kLanes));
    }
  }
  VF origin[GT];
  VF sum[GT];
  HWY_UNROLL(4)
  for (int g = 0; g < GT; ++g) {
    const float max = LargestLane(largest[g]);
    float& running = state.max[g0 + g];
    if (max > running) {
      if (state.sum[g0 + g] > 0) {
        Rescale(v, state, g0 + g, hn::GetLane(Exp2(hn::Set(d, running - max))));
      }
      running = max;
    }
    origin[g] = hn::Set(d, running);
    sum[g] = hn::Zero(d);
  }
  for (int64_t at = 0; at < size; at += GT * kLanes) {
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) {
      const VF weight = Exp2(hn::Sub(hn::Load(d, weights + at + g * kLanes), origin[g]));
      hn::Store(weight, d, weights + at + g * kLanes);
      sum[g] = hn::Add(sum[g], weight);
    }
  }
  for (int g = 0; g < GT; ++g) {
    sums[g] = SumLanes(sum[g]);
    state.sum[g0 + g] += sums[g];
  }
}

template <int GT>
void AttendSegment(const ChannelPlan& k, const ChannelPlan& v, const RunState& state, int g0,
                   const CompactBlock& block, const CompactBlock& next) {
  SegmentScores<GT>(k, state, state.q + static_cast<int64_t>(g0) * k.size, block.k, next.k);
  float sums[GT];
  SegmentWeights<GT>(v, state, g0, sums);
  SegmentOutputs<GT>(v, state, g0, sums, block.v, next.v);
}

static RunState NewRunState(const ChannelPlan& k, const ChannelPlan& v, const CompactRun& run,
                            ScratchArena& arena, const Partial& partial) {
  RunState state;
  state.group = run.group;
  state.max = partial.max;
  state.sum = partial.sum;
  const int64_t linear_size = static_cast<int64_t>(run.group) * v.size;
  const int64_t lanes_size = linear_size / v.size * (v.size - v.resident_start) * kLanes;
  state.q = arena.Take<float>(static_cast<int64_t>(run.group) * k.size);
  state.linear = arena.Take<float>(linear_size);
  state.lanes = arena.Take<float>(lanes_size);
  state.k_basis = ReorderBasis(*k.layout.basis, k.head.max_coefficients, arena);
  state.v_basis = ReorderBasis(*v.layout.basis, v.head.max_coefficients, arena);
  state.k_scale = arena.Take<float>(k.size);
  state.k_offset = arena.Take<float>(k.size);
  state.v_scale = arena.Take<float>(v.size);
  state.v_offset = arena.Take<float>(v.size);
  state.scaled_q = arena.Take<float>(kMaxGroupTile * k.size);
  state.weights = arena.Take<float>(kMaxGroupTile * v.tokens);
  state.coefficients = arena.Take<float>(kMaxGroupTile * kCoefficientStride);
  std::fill_n(state.max, run.group, -std::numeric_limits<float>::infinity());
  std::fill_n(state.sum, run.group, 0.0f);
  std::fill_n(state.q, static_cast<int64_t>(run.group) * k.size, 0.0f);
  std::fill_n(state.linear, linear_size, 0.0f);
  std::fill_n(state.lanes, lanes_size, 0.0f);
  for (int g = 0; g < run.group; ++g) {
    for (int b = 0; b < k.bands; ++b) {
      const BandLayout& band = k.head.bands[b];
      for (int j = 0; j < band.size; ++j) {
        state.q[static_cast<int64_t>(g) * k.size + k.start[b] + j] =
            run.q[static_cast<int64_t>(g) * k.layout.head_dim + band.channels[j]];
      }
    }
  }
  return state;
}

static void WriteOutputs(const ChannelPlan& v, const RunState& state, float* out) {
  for (int g = 0; g < state.group; ++g, out += v.layout.head_dim) {
    const float* linear = state.linear + static_cast<int64_t>(g) * v.size;
    for (int b = 0; b < v.bands; ++b) {
      const BandLayout& band = v.head.bands[b];
      for (int j = 0; j < band.size; ++j) {
        float value = linear[v.start[b] + j];
        if (!band.spectral()) {
          const int64_t resident = v.start[b] + j - v.resident_start;
          value += SumLanes(hn::Load(DF(), state.lanes + (resident * state.group + g) * kLanes));
        }
        out[band.channels[j]] = value;
      }
    }
  }
}

void AttendCompactRun(const CompactRun& run, ScratchArena& arena, const Partial& partial) {
  const ChannelPlan k(*run.k_layout, run.head, arena);
  const ChannelPlan v(*run.v_layout, run.head, arena);
  const RunState state = NewRunState(k, v, run, arena, partial);
  for (size_t i = 0; i < run.blocks.size(); ++i) {
    const CompactBlock& block = run.blocks[i];
    const CompactBlock next = i + 1 < run.blocks.size() ? run.blocks[i + 1] : CompactBlock{};
    ExpandScales(k, block.k, state.k_scale, state.k_offset);
    ExpandScales(v, block.v, state.v_scale, state.v_offset);
    for (int g = 0; g < run.group; g += kMaxGroupTile) {
      const CompactBlock& ahead = g == 0 ? next : CompactBlock{};
      switch (std::min(run.group - g, kMaxGroupTile)) {
        case 1:
          AttendSegment<1>(k, v, state, g, block, ahead);
          break;
        case 2:
          AttendSegment<2>(k, v, state, g, block, ahead);
          break;
        case 3:
          AttendSegment<3>(k, v, state, g, block, ahead);
          break;
        default:
          AttendSegment<4>(k, v, state, g, block, ahead);
      }
    }
  }
  WriteOutputs(v, state, partial.out);
}

}  // namespace HWY_NAMESPACE
}  // namespace fourierkv::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fourierkv::cpu {

HWY_EXPORT(AttendCompactRun);

void AttendCompactRun(const CompactRun& run, ScratchArena& arena, const Partial& partial) {
  HWY_DYNAMIC_DISPATCH(AttendCompactRun)(run, arena, partial);
}

}  // namespace fourierkv::cpu
#endif  // HWY_ONCE
