// Products by the four warps of a warp group, of operands in shared memory (compute capability
// 9.0a). Operands are bf16 [rows][64], rows of 128 bytes swizzled as by
// CU_TENSOR_MAP_SWIZZLE_128B, from a multiple of 1024 bytes on.

#pragma once

#include <cstdint>

#include "kernels/mma.cuh"

namespace fourierkv::kernels {

// Whether code that is being compiled for a device can use this.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kHasWarpGroupProducts = true;
#else
constexpr bool kHasWarpGroupProducts = false;
#endif

// The operand from `address` on. 16 bytes further it is one more.
__device__ __forceinline__ uint64_t SwizzledOperand(uint32_t address) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kEightRows = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEightRows | uint64_t{1} << 16 | address >> 4;
}

// Before products, once sums have been set otherwise.
__device__ __forceinline__ void BeginProducts() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Until all products of this warp group so far are there.
__device__ __forceinline__ void FinishProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// d += a b^T over 16 elements, of 64 rows of a and kColumns rows of b. Warp w of the group has rows
// 16 w to 16 w + 15 of the sums: for each eight columns what a product m16n8k16 gives (mma.cuh).
template <int kColumns>
struct Wgmma;

#define FOURIERKV_SUM4(d, i) \
  "+f"((d)[i]), "+f"((d)[(i) + 1]), "+f"((d)[(i) + 2]), "+f"((d)[(i) + 3])
#define FOURIERKV_SUM16(d, i)                                                   \
  FOURIERKV_SUM4(d, i), FOURIERKV_SUM4(d, (i) + 4), FOURIERKV_SUM4(d, (i) + 8), \
      FOURIERKV_SUM4(d, (i) + 12)
#define FOURIERKV_WGMMA(columns, sums, a, b, ...)                                                  \
  template <>                                                                                      \
  struct Wgmma<columns> {                                                                          \
    static __device__ __forceinline__ void Add(float* d, uint64_t a_operand, uint64_t b_operand) { \
      asm volatile(                                                                                \
          "{\n.reg .pred add;\nsetp.eq.u32 add, 1, 1;\n"                                           \
          "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32.bf16.bf16 {" sums "}, " a ", " b   \
          ", add, 1, 1, 0, 0;\n}"                                                                  \
          : __VA_ARGS__                                                                            \
          : "l"(a_operand), "l"(b_operand));                                                       \
    }                                                                                              \
  };

FOURIERKV_WGMMA(8, "%0,%1,%2,%3", "%4", "%5", FOURIERKV_SUM4(d, 0))
FOURIERKV_WGMMA(16, "%0,%1,%2,%3,%4,%5,%6,%7", "%8", "%9", FOURIERKV_SUM4(d, 0),
                FOURIERKV_SUM4(d, 4))
FOURIERKV_WGMMA(24, "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11", "%12", "%13", FOURIERKV_SUM4(d, 0),
                FOURIERKV_SUM4(d, 4), FOURIERKV_SUM4(d, 8))
FOURIERKV_WGMMA(32, "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15", "%16", "%17",
                FOURIERKV_SUM16(d, 0))
FOURIERKV_WGMMA(64,
                "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,"
                "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31",
                "%32", "%33", FOURIERKV_SUM16(d, 0), FOURIERKV_SUM16(d, 16))

#undef FOURIERKV_WGMMA
#undef FOURIERKV_SUM16
#undef FOURIERKV_SUM4

// The same for any multiple of 8, by parts.
template <int kColumns>
__device__ __forceinline__ void AddProducts(float* d, uint64_t a, uint64_t b) {
  constexpr int kPart = kColumns >= 64 ? 64 : kColumns >= 32 ? 32 : kColumns;
  Wgmma<kPart>::Add(d, a, b);
  if constexpr (kColumns > kPart) {
    AddProducts<kColumns - kPart>(d + kPart / 2, a, b + kPart * 128 / 16);
  }
}

}  // namespace fourierkv::kernels
