// Payloads of one head on their way into a block's shared memory: one segment's after the other,
// copied whole in the background while the block's warps work on those before (sm_90).

#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/mma.cuh"

namespace fourierkv::kernels::codec {

// Bytes of a payload that stands in global memory. Offsets are multiples of what is loaded.
struct GlobalBytes {
  const uint8_t* from;

  __device__ __forceinline__ int8_t One(uint32_t at) const {
    return __ldg(reinterpret_cast<const int8_t*>(from + at));
  }
  __device__ __forceinline__ uint16_t Two(uint32_t at) const {
    return __ldg(reinterpret_cast<const uint16_t*>(from + at));
  }
  __device__ __forceinline__ uint32_t Four(uint32_t at) const {
    return __ldg(reinterpret_cast<const uint32_t*>(from + at));
  }
  __device__ __forceinline__ uint2 Eight(uint32_t at) const {
    return __ldg(reinterpret_cast<const uint2*>(from + at));
  }
};

// The same of one in shared memory.
struct SharedBytes {
  const uint8_t* from;

  __device__ __forceinline__ int8_t One(uint32_t at) const {
    return *reinterpret_cast<const int8_t*>(from + at);
  }
  __device__ __forceinline__ uint16_t Two(uint32_t at) const {
    return *reinterpret_cast<const uint16_t*>(from + at);
  }
  __device__ __forceinline__ uint32_t Four(uint32_t at) const {
    return *reinterpret_cast<const uint32_t*>(from + at);
  }
  __device__ __forceinline__ uint2 Eight(uint32_t at) const {
    return *reinterpret_cast<const uint2*>(from + at);
  }
};

// Number k of the payloads that a block works on, its k-th fill, stands in place k % places until
// as many warps as need it have let go of it; then number k + places is copied there. A place is
// never a fill ahead of a warp that waits for it, so the parity of fills tells them apart.
class PayloadRing {
 public:
  struct Place {
    uint64_t full;   // barrier: the copy is there
    uint64_t empty;  // barrier: all have let go
    uint32_t left;   // how many have
    uint32_t unused[3];
  };

  // `bytes` of each payload, a multiple of 16, into `places` places that are `between` bytes apart,
  // from `payloads` on.
  __device__ __forceinline__ PayloadRing(Place* state, uint8_t* payloads, int places, int between,
                                         int bytes)
      : state_(state), payloads_(payloads), places_(places), between_(between), bytes_(bytes) {}

  // The first fills begin, of `fills`, each for so many readers; from(i) is where number i comes
  // from. By one warp, once; others may use the ring behind a barrier.
  template <class From>
  __device__ __forceinline__ void StartFirst(int fills, int readers, const From& from) const {
#if __CUDA_ARCH__ >= 900
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int i = lane; i < places_; i += 32) {
      state_[i].left = 0;
      Prepare(&state_[i].full, 1);
      Prepare(&state_[i].empty, 32 * readers);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    __syncwarp();
    for (int i = lane; i < places_ && i < fills; i += 32) Start(i, from(i));
#endif
  }

  // Returns when it is there.
  __device__ __forceinline__ SharedBytes Wait(int fill) const {
    const int place = fill % places_;
#if __CUDA_ARCH__ >= 900
    Wait(&state_[place].full, fill / places_ & 1);
#endif
    return {payloads_ + place * between_};
  }

  // This warp needs it no longer; the last of `readers` has the next fill of its place copied
  // there, from `next`, unless that is null.
  __device__ __forceinline__ void LetGo(int fill, int readers, const uint8_t* next) const {
#if __CUDA_ARCH__ >= 900
    Place& place = state_[fill % places_];
    asm volatile(
        "mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(&place.empty))
        : "memory");
    __syncwarp();
    if (threadIdx.x % 32 != 0) return;
    const uint32_t before = atomicAdd(&place.left, 1);
    if (before + 1 != static_cast<uint32_t>(readers) || next == nullptr) return;
    Wait(&place.empty, fill / places_ & 1);
    place.left = 0;
    Start(fill + places_, next);
#endif
  }

 private:
#if __CUDA_ARCH__ >= 900
  static __device__ __forceinline__ void Prepare(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
                 "r"(arrivals)
                 : "memory");
  }
  static __device__ __forceinline__ void Wait(const uint64_t* barrier, int parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "AGAIN:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra AGAIN;\n"
        "}" ::"r"(SharedAddress(barrier)),
        "r"(parity)
        : "memory");
  }
#endif

  // Fill number `fill` begins. By one thread.
  __device__ __forceinline__ void Start(int fill, const uint8_t* from) const {
#if __CUDA_ARCH__ >= 900
    const int place = fill % places_;
    const uint32_t full = SharedAddress(&state_[place].full);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(full), "r"(bytes_)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(SharedAddress(payloads_ + place * between_)),
        "l"(from), "r"(bytes_), "r"(full)
        : "memory");
#endif
  }

  Place* const state_;
  uint8_t* const payloads_;
  const int places_;
  const int between_;
  const int bytes_;
};

// How many places for payloads of `bytes` there are in `shared` bytes, or 0 if less than `least`.
inline int PayloadPlaces(int64_t bytes, int64_t shared, int least) {
  constexpr int64_t kMost = 8;
  const int64_t places = shared / (bytes + static_cast<int64_t>(sizeof(PayloadRing::Place)));
  return places < least ? 0 : static_cast<int>(std::min(places, kMost));
}

}  // namespace fourierkv::kernels::codec
