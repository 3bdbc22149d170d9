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

// Bytes of queries that four heads have in shared memory.
template <int kBits>
__device__ __forceinline__ int UniformQueryBytes(const UniformPart& k) {
  return kBits == 16 ? 256 * (k.chunks + k.resident_chunks)
                     : 512 * ((k.chunks + 1) / 2 + k.resident_chunks);
}

// Queries of four heads, as lanes need them. Bands of 4 and 8 bits: f32, for
// coefficients [32 channels][lane]: four channels of chunk r % 2 of head r / 2; for residents
// [chunk][lane]: four channels of head r / 2. Of 16 bits: pairs of bf16, [chunk][lane]: four
// channels of head r / 2, their upper or lower parts. `query(channel)` gives those of head r / 2.
template <int kBits, typename Query>
__device__ __forceinline__ void ArrangeUniformQueries(uint8_t* to, const UniformPart& k,
                                                      const int16_t* channels, Query query) {
  const int lane = threadIdx.x & 31;
  const int r = lane >> 2;
  const int c = lane & 3;
  const int pairs = kBits == 16 ? k.chunks : (k.chunks + 1) / 2;
  for (int i = threadIdx.x; i < 32 * (pairs + k.resident_chunks); i += kAttentionThreads) {
    const int group = i >> 5;
    const bool resident = group >= pairs;
    const int n = group - pairs;
    const int chunk = resident ? k.chunks + n : kBits == 16 ? group : 2 * group + (r & 1);
    // What a lane has beside its own four channels has no query.
    const int first = resident ? FirstResident(k, n, lane) - kChunk * n : 4 * c;
    float q[4];
#pragma unroll
    for (int x = 0; x < 4; ++x) {
      const int slot = first + x;
      // The table lists residents' channels by lanes, every fourth for each.
      const int place = resident ? 4 * (slot & 3) + (slot >> 2) : slot;
      const bool valid = slot >= 4 * c && (resident || chunk < k.chunks);
      const int channel = valid ? channels[kChunk * chunk + place] : -1;
      q[x] = channel >= 0 ? query(channel) : 0.0f;
    }
    if (kBits == 16) {
      uint32_t parts[4];
#pragma unroll
      for (int x = 0; x < 4; ++x) parts[x] = SplitBf16(q[x]);
      const int halves = (r & 1) == 0 ? 0x5410 : 0x7632;
      reinterpret_cast<uint2*>(to)[i] = {__byte_perm(parts[0], parts[1], halves),
                                         __byte_perm(parts[2], parts[3], halves)};
    } else {
      reinterpret_cast<float4*>(to)[i] = {q[0], q[1], q[2], q[3]};
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
