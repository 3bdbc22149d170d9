// Numbers as the codec rounds them (docs/format.md, docs/math.md), and tensor core operands of
// either 16-bit type.

#pragma once

#include <cstdint>

#include "kernels/mma.cuh"
#include "kernels/segment_view.h"

namespace fourierkv::kernels::codec {

__device__ __forceinline__ float Bf16ToFloat(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
__device__ __forceinline__ uint16_t FloatToBf16(float value) {
  return static_cast<uint16_t>(PackBf16(value, 0.0f));
}

// The largest bf16 <= value, for finite values: in two steps, which is exact because every bf16 is
// a float.
__device__ __forceinline__ uint16_t DoubleToBf16Down(double value) {
  const uint32_t bits = __float_as_uint(__double2float_rd(value));
  const bool away = (bits & 0xffffu) != 0 && (bits >> 31) != 0;
  return static_cast<uint16_t>((bits >> 16) + (away ? 1u : 0u));
}

// The smallest bf16 that is at least x / kDivisor, x >= 0, without a division in double: a little
// less than the quotient is rounded up, which gives it or the bf16 below.
template <int kDivisor>
__device__ __forceinline__ uint16_t QuotientToBf16Up(double x) {
  const float less = static_cast<float>(x) * (0.999999f / kDivisor);
  const auto bits = static_cast<uint16_t>((__float_as_uint(less) + 0xffffu) >> 16);
  const bool enough = __dmul_rn(Bf16ToFloat(bits), kDivisor) >= x;
  return static_cast<uint16_t>(bits + (enough ? 0 : 1));
}

// a * b + c of pairs of bf16, rounded once.
__device__ __forceinline__ uint32_t FmaBf16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ __forceinline__ uint32_t AddBf16(uint32_t a, uint32_t b) {
  constexpr uint32_t kOnes = 0x3f803f80u;
  return FmaBf16(a, kOnes, b);
}

// Received values, and tensor core operands of the same type.
template <ElementType kType>
struct Element;

template <>
struct Element<ElementType::kBf16> {
  __device__ static __forceinline__ float ToFloat(uint16_t bits) { return Bf16ToFloat(bits); }
  __device__ static __forceinline__ uint32_t Pack(float low, float high) {
    return PackBf16(low, high);
  }
  __device__ static __forceinline__ float2 Unpack(uint32_t pair) {
    return {LowBf16(pair), HighBf16(pair)};
  }
  __device__ static __forceinline__ void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    MmaBf16(d, a[0], a[1], a[2], a[3], b0, b1);
  }
  // To nearest even.
  __device__ static __forceinline__ uint32_t Round(float low, float high) {
    return PackBf16(low, high);
  }
  // Of pairs; the other value of a NaN.
  __device__ static __forceinline__ uint32_t Min(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("min.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
  }
  __device__ static __forceinline__ uint32_t Max(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
  }
};

template <>
struct Element<ElementType::kFp16> {
  __device__ static __forceinline__ float ToFloat(uint16_t bits) {
    return __half2float(__ushort_as_half(bits));
  }
  __device__ static __forceinline__ uint32_t Pack(float low, float high) {
    return PackF16(low, high);
  }
  __device__ static __forceinline__ float2 Unpack(uint32_t pair) { return UnpackF16(pair); }
  __device__ static __forceinline__ void Mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    MmaF16(d, a[0], a[1], a[2], a[3], b0, b1);
  }
  // To nearest even; overflow gives the largest finite value.
  __device__ static __forceinline__ uint32_t Round(float low, float high) {
    constexpr float kLargest = 65504.0f;
    return PackF16(fminf(fmaxf(low, -kLargest), kLargest), fminf(fmaxf(high, -kLargest), kLargest));
  }
  __device__ static __forceinline__ uint32_t Min(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("min.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
  }
  __device__ static __forceinline__ uint32_t Max(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("max.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
  }
};

// The first of a pair of 16-bit values is in the lower half.
__device__ __forceinline__ uint32_t LowerHalves(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, 0x5410);
}
__device__ __forceinline__ uint32_t UpperHalves(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, 0x7632);
}

// Four 8 x 8 matrices of 16-bit values, of which lanes 8 i to 8 i + 7 point to the rows of matrix
// i. Lane (r, c) gets (r, 2c), (r, 2c+1) of each, or with kTransposed (2c, r), (2c+1, r).
template <bool kTransposed>
__device__ __forceinline__ void LoadMatrices(uint32_t (&x)[4], uint32_t row) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(row)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(row)
                 : "memory");
  }
}

// Three terms of a 16-bit type that add up to a float, to its last bit or nearly so.
template <ElementType kType>
struct SplitPair {
  uint32_t high, middle, low;  // of two values each

  __device__ __forceinline__ SplitPair(float x, float y) {
    high = Element<kType>::Pack(x, y);
    float2 value = Element<kType>::Unpack(high);
    x -= value.x;
    y -= value.y;
    middle = Element<kType>::Pack(x, y);
    value = Element<kType>::Unpack(middle);
    low = Element<kType>::Pack(x - value.x, y - value.y);
  }
};

}  // namespace fourierkv::kernels::codec
