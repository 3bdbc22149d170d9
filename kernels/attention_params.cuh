// What the attention kernel is launched with, and how it writes results.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/attention_entry.h"
#include "kernels/fourier_attention.h"
#include "kernels/mma.cuh"

namespace fourierkv::kernels {

inline constexpr int kAttentionThreads = 32 * kAttentionWarps;
inline constexpr int kSlots = 4;  // of a warp; one step is worked on while three more are copied
inline constexpr float kLog2E = 1.4426950408889634f;

// Where everything of a worker stands in shared memory, in bytes from its start.
struct SharedLayout {
  int program;       // of its head; of a uniform one only what its parts are, K then V
  int queries;       // as operands; of all its heads
  int page_queries;  // the same for pages; of uniform heads behind the slots
  int norms;         // f32[8]: what turns a head's scores into units of log2
  int stats;         // f32[warps][2][8]: maxima, sums
  int warps;
  int warp_bytes;
  // From a warp's start, behind its slots; those of uniform heads begin where slots do.
  int small_k;
  int small_v;
  int uniform_v;  // 0: where K is, in turn
  int outputs;
  int log_lanes;  // of those that hold outputs: 4 or 5
  int worker_bytes;
};

struct KernelParams {
  FourierAttentionParams user;
  SharedLayout shared;
  const AttentionEntry* entries;
  int workers;  // which the first entries are of
  int groups;   // of query heads, of all KV heads
  int units_per_segment;
  int log_tokens;
  int64_t record_floats;
  int32_t* worker_counters;      // [kMaxWorkers]: of pieces with many parts
  int32_t* group_counters;       // [batch][groups]
  const float* rotated_queries;  // null: K is not rotated
  float* records;
};

__device__ __forceinline__ float LoadInput(const FourierAttentionParams& user, int64_t index) {
  if (user.float_io) return static_cast<const float*>(user.q)[index];
  const uint16_t bits = static_cast<const uint16_t*>(user.q)[index];
  if (user.dtype == ElementType::kBf16) return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  return __half2float(__ushort_as_half(bits));
}

// Where results go.
struct Results {
  void* out;
  bool floats;
  bool bf16;  // if not floats; otherwise fp16

  __device__ __forceinline__ explicit Results(const FourierAttentionParams& user)
      : out(user.out), floats(user.float_io), bf16(user.dtype == ElementType::kBf16) {}

  // Eight from `index`, a multiple of 8, on.
  __device__ __forceinline__ void Store(int64_t index, const float (&values)[8]) const {
    if (floats) {
      auto* const to = reinterpret_cast<float4*>(static_cast<float*>(out) + index);
      to[0] = {values[0], values[1], values[2], values[3]};
      to[1] = {values[4], values[5], values[6], values[7]};
      return;
    }
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pairs[i] = bf16 ? PackBf16(values[2 * i], values[2 * i + 1])
                      : PackF16(values[2 * i], values[2 * i + 1]);
    }
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(out) + index) = {pairs[0], pairs[1], pairs[2],
                                                                      pairs[3]};
  }
};

}  // namespace fourierkv::kernels
