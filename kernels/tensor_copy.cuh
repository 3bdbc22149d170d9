// Boxes of matrices copied to shared memory in the background by the tensor memory accelerator
// (compute capability 9.0), and the barriers that tell when they are there.

#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/mma.cuh"

namespace fourierkv::kernels {

// A barrier in shared memory: a phase ends when `arrivals` threads have arrived and all bytes that
// they announced have been copied. Phases alternate between parity 0, the first, and 1.
__device__ __forceinline__ void InitBarrier(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals));
}

// Makes barriers that this thread has made known to the background copies.
__device__ __forceinline__ void PublishBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}

__device__ __forceinline__ void ArriveAndExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}

// Until the barrier's phase of this parity has ended.
__device__ __forceinline__ void WaitForPhase(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@ended bra done;\n"
      "bra again;\n"
      "done:\n"
      "}" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// For copies of what is read once: first to leave the second-level cache.
__device__ __forceinline__ uint64_t ReadOncePolicy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Enqueue the copy of the box at the given coordinates, the innermost first. `map` is a kernel's
// __grid_constant__ parameter.
__device__ __forceinline__ void CopyBox2(void* to, const CUtensorMap& map, int c0, int c1,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(SharedAddress(to)),
      "l"(&map), "r"(c0), "r"(c1), "r"(SharedAddress(barrier))
      : "memory");
}

__device__ __forceinline__ void CopyBox4(void* to, const CUtensorMap& map, int c0, int c1, int c2,
                                         int c3, uint64_t* barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(SharedAddress(to)),
      "l"(&map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(SharedAddress(barrier)), "l"(policy)
      : "memory");
}

}  // namespace fourierkv::kernels
