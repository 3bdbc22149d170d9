// What the attention kernel is launched with, and how it reads queries and writes results.

#pragma once

#include <cstdint>

#include "kernels/attention_merge.cuh"
#include "kernels/fourier_attention.h"
#include "kernels/mma.cuh"

namespace fourierkv::kernels {

inline constexpr int kSlots = 4;  // of a warp; one step is worked on while three more are copied
inline constexpr int kGroupHeads = 8;
inline constexpr int kMaxStretches = 528;  // more would need more shared memory to merge
inline constexpr float kLog2E = 1.4426950408889634f;

// Where everything stands in a block's dynamic shared memory, in bytes.
struct SharedLayout {
  int queries;
  int norms;  // f32[8]: what turns a head's scores into units of log2
  int stats;  // f32[warps][2][8]: maxima, sums
  int warps;
  int warp_bytes;
  // From a warp's start, behind its slots; those of uniform heads begin where slots do.
  int small_k;
  int small_v;
  int uniform_v;
  int outputs;
  int log_lanes;  // of those that hold outputs: 4 or 5
  int total;
};

struct KernelParams {
  FourierAttentionParams user;
  SharedLayout shared;
  int groups_per_head;
  int units_per_segment;
  int log_tokens;
  int64_t record_floats;
  int32_t* counters;
  const float* rotated_queries;  // null: K is not rotated
  float* records;
};

__device__ __forceinline__ float LoadInput(const FourierAttentionParams& user, int64_t index) {
  if (user.float_io) return static_cast<const float*>(user.q)[index];
  const uint16_t bits = static_cast<const uint16_t*>(user.q)[index];
  if (user.dtype == ElementType::kBf16) return __uint_as_float(static_cast<uint32_t>(bits) << 16);
  return __half2float(__ushort_as_half(bits));
}

__device__ __forceinline__ void StoreOutput(const FourierAttentionParams& user, int64_t index,
                                            float value) {
  if (user.float_io) {
    static_cast<float*>(user.out)[index] = value;
  } else if (user.dtype == ElementType::kBf16) {
    static_cast<__nv_bfloat16*>(user.out)[index] = __float2bfloat16_rn(value);
  } else {
    static_cast<__half*>(user.out)[index] = __float2half_rn(value);
  }
}

}  // namespace fourierkv::kernels
