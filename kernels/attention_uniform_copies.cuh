// How parts of uniform heads (attention_program.h) come into a warp's shared memory: each whole, as
// it stands in the payload.

#pragma once

#include <cstdint>

#include "kernels/attention_program.h"
#include "kernels/mma.cuh"

namespace fourierkv::kernels {

// Copies of one part after the other into one place of one warp. All lanes call everything.
class PartCopy {
 public:
  // `barrier`: 8 bytes of shared memory for this alone, which Prepare was called for.
  __device__ __forceinline__ PartCopy(uint32_t to, uint32_t barrier) : to_(to), barrier_(barrier) {}

  // Once, by one lane, before __syncwarp.
  static __device__ __forceinline__ void Prepare(uint32_t barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#else
    (void)barrier;
#endif
  }

  // Lets copies see what threads wrote to their places before. By these threads.
  static __device__ __forceinline__ void OrderWrites() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  }

  // Copies `bytes`, a multiple of 16, once the lanes before have read what was there.
  __device__ __forceinline__ void Start(const uint8_t* from, int bytes, int lane) {
    __syncwarp();
#if __CUDA_ARCH__ >= 900
    if (lane == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier_),
                   "r"(bytes)
                   : "memory");
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
          "[%3];" ::"r"(to_),
          "l"(from), "r"(bytes), "r"(barrier_)
          : "memory");
    }
#else
#pragma unroll 1
    for (int at = 16 * lane; at < bytes; at += 512) CopyAsync16(to_ + at, from + at);
    CommitCopies();
#endif
  }

  // Until the copy started last is there; `later`: whether another was started behind it.
  __device__ __forceinline__ void Wait(bool later) {
#if __CUDA_ARCH__ >= 900
    (void)later;
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "WAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra WAIT;\n"
        "}" ::"r"(barrier_),
        "r"(parity_)
        : "memory");
    parity_ ^= 1;
#else
    if (later) {
      WaitForCopies<1>();
    } else {
      WaitForCopies<0>();
    }
    __syncwarp();
#endif
  }

 private:
  const uint32_t to_;
  const uint32_t barrier_;
  uint32_t parity_ = 0;
};

// Asks for 128 bytes that are needed soon.
__device__ __forceinline__ void Prefetch(const void* at) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

// What is copied of a part.
template <int kBits>
__device__ __forceinline__ int UniformBytes(const UniformPart& part) {
  return part.small_bytes + part.residents * (kUnitTokens * kBits / 8);
}

// A pointer from a table that does not change.
__device__ __forceinline__ const uint8_t* LoadPointer(const uint8_t* const* at) {
  return reinterpret_cast<const uint8_t*>(__ldg(reinterpret_cast<const unsigned long long*>(at)));
}

// Loads from shared memory by address.
__device__ __forceinline__ uint4 LoadShared16(uint32_t at) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(at));
  return x;
}
__device__ __forceinline__ uint2 LoadShared8(uint32_t at) {
  uint2 x;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(x.x), "=r"(x.y) : "r"(at));
  return x;
}
__device__ __forceinline__ uint32_t LoadShared4(uint32_t at) {
  uint32_t x;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(at));
  return x;
}
__device__ __forceinline__ float LoadSharedBf16(uint32_t at) {
  uint16_t x;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(x) : "r"(at));
  return __uint_as_float(static_cast<uint32_t>(x) << 16);
}

// Bytes from any address: where the words that they touch begin, and by how much to shift.
struct UnevenRow {
  uint32_t words;
  uint32_t shift;

  __device__ __forceinline__ explicit UnevenRow(uint32_t at)
      : words(at & ~3u), shift(8 * (at & 3)) {}

  __device__ __forceinline__ uint32_t Load4(int offset) const {
    return __funnelshift_r(LoadShared4(words + offset), LoadShared4(words + offset + 4), shift);
  }
  __device__ __forceinline__ uint2 Load8(int offset) const {
    const uint32_t middle = LoadShared4(words + offset + 4);
    return {__funnelshift_r(LoadShared4(words + offset), middle, shift),
            __funnelshift_r(middle, LoadShared4(words + offset + 8), shift)};
  }
};

// What is behind the last scale becomes finite, so that zeros can make it zero. Scales are positive
// and stay as they are.
__device__ __forceinline__ uint32_t FiniteScales(uint32_t pair) {
  return __vminu2(pair, 0x7f7f7f7fu);
}

}  // namespace fourierkv::kernels
