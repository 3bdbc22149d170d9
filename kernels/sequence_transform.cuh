// The grid of kernels/sequence_basis.h: an FFT of kGridCells points by one block of threads, and
// the kernel phi.

#pragma once

#include <cstdint>

#include "kernels/mma.cuh"
#include "kernels/sequence_basis.h"

namespace fourierkv::kernels {

inline constexpr int kTransformThreads = kGridCells / 4;

__device__ __forceinline__ float2 Multiply(float2 a, float2 b) {
  return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}
__device__ __forceinline__ float2 Add(float2 a, float2 b) {
  return make_float2(a.x + b.x, a.y + b.y);
}
__device__ __forceinline__ float2 Subtract(float2 a, float2 b) {
  return make_float2(a.x - b.x, a.y - b.y);
}

// exp(+-i pi x), + if kInverse, for 0 <= x < 1, to 5e-7.
template <bool kInverse>
__device__ __forceinline__ float2 UnitCircle(float x) {
  float sine, cosine;
  __sincosf(x * 3.14159265f, &sine, &cosine);
  return make_float2(cosine, kInverse ? sine : -sine);
}

// Each x[i][k] becomes sum_j x[i][j] exp(-+2 pi i j k / kGridCells), - unless kInverse; not
// normalised. In shared memory, by all kTransformThreads threads of a block, which must have agreed
// on x before and may read it at once afterwards. Stockham's order: five radix-4 passes and one of
// radix 2.
template <bool kInverse, int kCount>
__device__ void Transform(float2 (&x)[kCount][kGridCells]) {
  const int j = threadIdx.x;
#pragma unroll 1
  for (int span = 1; span < kGridCells / 2; span *= 4) {
    const int k = j & (span - 1);
    const float2 w = UnitCircle<kInverse>(static_cast<float>(k) / static_cast<float>(2 * span));
    const float2 w2 = Multiply(w, w), w3 = Multiply(w, w2);
    float2 y[kCount][4];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float2 v0 = x[i][j];
      const float2 v1 = Multiply(x[i][j + kTransformThreads], w);
      const float2 v2 = Multiply(x[i][j + 2 * kTransformThreads], w2);
      const float2 v3 = Multiply(x[i][j + 3 * kTransformThreads], w3);
      const float2 even = Add(v0, v2), odd = Add(v1, v3);
      const float2 a = Subtract(v0, v2), b = Subtract(v1, v3);
      const float2 turned = kInverse ? make_float2(-b.y, b.x) : make_float2(b.y, -b.x);
      y[i][0] = Add(even, odd);
      y[i][1] = Add(a, turned);
      y[i][2] = Subtract(even, odd);
      y[i][3] = Subtract(a, turned);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount * 4; ++i) x[i / 4][4 * (j - k) + k + i % 4 * span] = y[i / 4][i % 4];
    __syncthreads();
  }
#pragma unroll
  for (int at = j; at < kGridCells / 2; at += kTransformThreads) {
    const float2 w = UnitCircle<kInverse>(static_cast<float>(at) / (kGridCells / 2));
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float2 even = x[i][at], odd = Multiply(x[i][at + kGridCells / 2], w);
      x[i][at] = Add(even, odd);
      x[i][at + kGridCells / 2] = Subtract(even, odd);
    }
  }
  __syncthreads();
}

// phi(z); its least value, 1e-6, from |z| = kKernelCells / 2 on.
__device__ __forceinline__ float GridKernel(float z) {
  constexpr float kScale = 4.0f / (kKernelCells * kKernelCells);
  constexpr float kShapeBits = kKernelShape * 1.44269504f;
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(fmaxf(1 - z * z * kScale, 0)));
  return Exp2(kShapeBits * root - kShapeBits);
}

}  // namespace fourierkv::kernels
