// Which of several workers is the last to have written what it has to: that one goes on with what
// all have written.

#pragma once

#include <cstdint>

namespace fourierkv::kernels {

// Adds one to a counter in device memory and gives what it was. Whatever this thread wrote, or
// threads before a barrier with it, is there for those who then see the counter and acquire.
__device__ __forceinline__ int32_t ReleaseAndCount(int32_t* counter) {
  int32_t before;
  asm volatile("atom.release.gpu.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}
__device__ __forceinline__ void Acquire() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// A barrier of the threads of one worker: a warp, or a block.
template <int kWarps>
__device__ __forceinline__ void WorkerSync() {
  if (kWarps == 1) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

// True for the last of `expected` workers, at least two, to come here; the counter is then zero
// again. The whole worker calls it; `thread` is its own number in it.
template <int kWarps>
__device__ __forceinline__ bool LastToArrive(int32_t* counter, int expected, int thread) {
  WorkerSync<kWarps>();
  int32_t before = 0;
  if (thread == 0) {
    before = ReleaseAndCount(counter);
    if (before == expected - 1) {
      Acquire();
      *counter = 0;
    }
  }
  if (kWarps > 1) return __syncthreads_or(before == expected - 1) != 0;
  const bool last = __shfl_sync(~0u, before, 0) == expected - 1;
  __syncwarp();
  return last;
}

}  // namespace fourierkv::kernels
