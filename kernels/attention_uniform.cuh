// Units of uniform heads (attention_program.h): everything that a part needs is copied at once, and
// nothing is looked up step by step. Query heads are worked on four at a time, each in two columns
// of the tensor cores' eight: values are taken as they are stored, and queries and weights, which
// stand opposite, are 16 bits in two parts. docs/kernels.md.

#pragma once

#include <cstdint>

#include "kernels/attention_params.cuh"
#include "kernels/attention_program.h"
#include "kernels/attention_uniform_copies.cuh"
#include "kernels/attention_uniform_outputs.cuh"
#include "kernels/attention_uniform_scores.cuh"
#include "kernels/mma.cuh"

namespace fourierkv::kernels {

// Groups of queries (attention_program.h), and the bytes that they are for four heads.
template <int kBits>
__device__ __forceinline__ int UniformQueryGroups(const UniformPart& k) {
  return k.resident_chunks + (kBits == 16 ? k.chunks : (k.chunks + 1) / 2);
}
template <int kBits>
__device__ __forceinline__ int UniformQueryBytes(const UniformPart& k) {
  return (kBits == 16 ? 256 : 512) * UniformQueryGroups<kBits>(k);
}

// Queries of four heads, as lanes need them. Bands of 4 and 8 bits: f32, for
// coefficients [32 channels][lane]: four channels of chunk r % 2 of head r / 2; for residents
// [chunk][lane]: four channels of head r / 2. Of 16 bits: pairs of bf16, [chunk][lane]: four
// channels of head r / 2, their upper or lower parts. `order`: which channels these are
// (attention_program.h); `query(channel)` gives those of head r / 2.
template <int kBits, typename Query>
__device__ __forceinline__ void ArrangeUniformQueries(uint8_t* to, int groups, const short4* order,
                                                      int lane, Query query) {
  constexpr int kAtOnce = 4;
#pragma unroll 1
  for (int first = 0; first < groups; first += kAtOnce) {
    short4 ids[kAtOnce];
#pragma unroll
    for (int x = 0; x < kAtOnce; ++x) {
      ids[x] = __ldg(order + 8 * min(first + x, groups - 1) + (lane & 7));
    }
#pragma unroll
    for (int x = 0; x < kAtOnce; ++x) {
      if (first + x >= groups) break;
      const float q[4] = {query(ids[x].x), query(ids[x].y), query(ids[x].z), query(ids[x].w)};
      const int i = 32 * (first + x) + lane;
      if (kBits == 16) {
        uint32_t parts[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) parts[k] = SplitBf16(q[k]);
        const int halves = (lane & 4) == 0 ? 0x5410 : 0x7632;
        reinterpret_cast<uint2*>(to)[i] = {__byte_perm(parts[0], parts[1], halves),
                                           __byte_perm(parts[2], parts[3], halves)};
      } else {
        reinterpret_cast<float4*>(to)[i] = {q[0], q[1], q[2], q[3]};
      }
    }
  }
}

// The softmax of a warp so far, of head c, in shared memory: maxima of scores in units of log2.
struct UniformSoftmax {
  float* largest;  // [kGroupHeads]
  float* sum;

  // A unit has scores up to `unit`: how much former sums and outputs count now, and the unit's own.
  __device__ __forceinline__ void Raise(int head, float unit, float* keep, float* own) const {
    const float before = largest[head];
    const float raised = fmaxf(before, unit);
    *keep = Exp2(before - raised);
    *own = Exp2(unit - raised);
  }
  // Once per head, after all lanes' Raise.
  __device__ __forceinline__ void Add(int head, float unit, float keep, float own,
                                      float more) const {
    largest[head] = fmaxf(largest[head], unit);
    sum[head] = fmaf(sum[head], keep, more * own);
  }
};

}  // namespace fourierkv::kernels
