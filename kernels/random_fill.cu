#include <cuda_bf16.h>

#include "kernels/random_fill.h"

namespace fourierkv::kernels {
namespace {

constexpr int kThreads = 256;

// The finaliser of splitmix64 (Steele, Lea and Flood, 2014).
__device__ uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

__global__ void FillRandomKernel(uint2* out, int64_t fours, float deviation, uint64_t seed) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  // Four uniform bytes have a variance of 4 (256^2 - 1) / 12 around 510.
  const float scale = deviation * 0.0067659f;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < fours; i += stride) {
    uint32_t bits[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint64_t random = Mix(seed + 0x9e3779b97f4a7c15ull * (2 * i + half + 1));
      float value[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint32_t word = static_cast<uint32_t>(random >> (32 * j));
        const int sum = (word & 255u) + ((word >> 8) & 255u) + ((word >> 16) & 255u) + (word >> 24);
        value[j] = static_cast<float>(sum - 510) * scale;
      }
      const __nv_bfloat162 two = __floats2bfloat162_rn(value[0], value[1]);
      bits[half] = *reinterpret_cast<const uint32_t*>(&two);
    }
    out[i] = {bits[0], bits[1]};
  }
}

}  // namespace

cudaError_t LaunchFillRandom(uint16_t* out, int64_t count, float deviation, uint64_t seed,
                             cudaStream_t stream) {
  if (out == nullptr || reinterpret_cast<uintptr_t>(out) % 8 != 0 || count < 0 || count % 4 != 0) {
    return cudaErrorInvalidValue;
  }
  if (count == 0) return cudaSuccess;
  const int64_t blocks = (count / 4 - 1) / kThreads + 1;
  FillRandomKernel<<<static_cast<unsigned>(blocks < 8192 ? blocks : 8192), kThreads, 0, stream>>>(
      reinterpret_cast<uint2*>(out), count / 4, deviation, seed);
  return cudaGetLastError();
}

}  // namespace fourierkv::kernels
