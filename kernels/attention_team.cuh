// The warps that leave one record together, and which of several such teams is the last to have
// done so: that one goes on with what all have written.

#pragma once

#include <cstdint>

namespace fourierkv::kernels {

// Consecutive warps of a block, seen by one thread of them.
struct Team {
  int first;  // warp of the block
  int warps;
  int thread;  // of the team

  __device__ __forceinline__ Team(int team_first, int team_warps)
      : first(team_first), warps(team_warps), thread(threadIdx.x - 32 * team_first) {}
  // Of a mask of warps of the block.
  static __device__ __forceinline__ Team Of(int32_t mask) {
    return Team(__ffs(mask) - 1, __popc(mask));
  }

  __device__ __forceinline__ int lane() const { return thread & 31; }
  __device__ __forceinline__ int threads() const { return 32 * warps; }
  // A barrier of the team; all of a warp's lanes come together.
  __device__ __forceinline__ void Sync() const {
    __syncwarp();
    if (warps > 1) {
      asm volatile("barrier.cta.sync %0, %1;" ::"r"(1 + first), "r"(threads()) : "memory");
    }
  }
  // The same, and whether the first thread says so.
  __device__ __forceinline__ bool Ask(bool say) const {
    if (warps == 1) return __shfl_sync(~0u, say ? 1 : 0, 0) != 0;
    uint32_t any;
    asm volatile(
        "{\n.reg .pred p, q;\nsetp.ne.u32 p, %1, 0;\n"
        "barrier.cta.red.or.pred q, %2, %3, p;\nselp.u32 %0, 1, 0, q;\n}"
        : "=r"(any)
        : "r"(thread == 0 && say ? 1 : 0), "r"(1 + first), "r"(threads())
        : "memory");
    return any != 0;
  }
};

// Adds one to a counter in device memory and gives what it was. Whatever this thread wrote, or
// threads before a barrier with it, is there for those who then see the counter and acquire.
__device__ __forceinline__ int32_t ReleaseAndCount(int32_t* counter) {
  int32_t before;
  asm volatile("atom.release.gpu.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}
__device__ __forceinline__ void Acquire() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// True for the last of `expected` teams, at least two, to come here; the counter is then zero
// again. The whole team calls it.
__device__ __forceinline__ bool LastToArrive(const Team& team, int32_t* counter, int expected) {
  team.Sync();
  bool last = false;
  if (team.thread == 0) {
    last = ReleaseAndCount(counter) == expected - 1;
    if (last) {
      Acquire();
      *counter = 0;
    }
  }
  return team.Ask(last);
}

}  // namespace fourierkv::kernels
