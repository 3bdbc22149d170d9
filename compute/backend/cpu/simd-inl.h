// Vector helpers shared by the kernels, compiled once per instruction set (hence no #pragma once).

#if defined(FOURIERKV_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOURIERKV_SIMD_INL_H_
#undef FOURIERKV_SIMD_INL_H_
#else
#define FOURIERKV_SIMD_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace fourierkv::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes, so that S / 8 (at least 16) is a whole number of vectors.
using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using DU16 = hn::Repartition<uint16_t, DF>;  // twice as many lanes
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
using VU = hn::Vec<DU>;

constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));
// Elements of a row of 16-bit values that one full vector holds.
constexpr int kChunk = 2 * kLanes;

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4
constexpr int kVectorRegisters = 16;
#else
constexpr int kVectorRegisters = 32;
#endif

constexpr int RoundUpToLanes(int n) { return (n + kLanes - 1) / kLanes * kLanes; }
constexpr int RoundUpToChunk(int n) { return (n + kChunk - 1) / kChunk * kChunk; }

// Rows of values, read as two float vectors per chunk of kChunk elements. Which element
// lands in which lane is the reader's choice (bf16: even and odd elements, which costs one
// instruction each); arrays over channels are kept in that *arranged* order: Arranged(channel) is a
// channel's index. The last chunk of a row may be partial: `pairs` elements pairs, from 1 to
// kLanes; missing lanes read 0.
struct Bf16Rows {
  using Value = uint16_t;
  static constexpr uint16_t kLargestMagnitude = 0x7149;  // largest bf16 <= 1e30

  static HWY_INLINE void Split(VU raw, VF& first, VF& second) {
    first = hn::BitCast(DF(), hn::ShiftLeft<16>(raw));
    second = hn::BitCast(DF(), hn::And(raw, hn::Set(DU(), 0xffff0000u)));
  }
  static constexpr int Arranged(int channel) {
    const int within = channel % kChunk;
    return channel - within + (within % 2) * kLanes + within / 2;
  }
};

struct Fp16Rows {
  using Value = uint16_t;
  static constexpr uint16_t kLargestMagnitude = 0x7bff;  // largest finite fp16

  static HWY_INLINE void Split(VU raw, VF& first, VF& second) {
    const hn::Half<DU16> half;
    const hn::Rebind<hwy::float16_t, DF> fp16;
    const auto both = hn::BitCast(DU16(), raw);
    first = hn::PromoteTo(DF(), hn::BitCast(fp16, hn::LowerHalf(half, both)));
    second = hn::PromoteTo(DF(), hn::BitCast(fp16, hn::UpperHalf(half, both)));
  }
  static constexpr int Arranged(int channel) { return channel; }
};

// Rows that were computed, padded to whole chunks.
struct FloatRows {
  using Value = float;
  static constexpr int Arranged(int channel) { return channel; }
};

static HWY_INLINE VU LoadRaw(const uint16_t* row) {
  return hn::BitCast(DU(), hn::LoadU(DU16(), row));
}

// Partial chunks exist only where vectors hold more than 8 elements (rows are multiples of 8), and
// there masked loads do not touch what is masked out.
static HWY_INLINE VU LoadRawPartial(const uint16_t* row, int pairs) {
  const DU d;
  return hn::MaskedLoad(hn::FirstN(d, pairs), d, reinterpret_cast<const uint32_t*>(row));
}

template <class Rows, bool kPartial>
HWY_INLINE void LoadChunk(const typename Rows::Value* row, int pairs, VF& first, VF& second) {
  if constexpr (sizeof(typename Rows::Value) == sizeof(float)) {
    first = hn::Load(DF(), row);
    second = hn::Load(DF(), row + kLanes);
  } else if constexpr (kPartial) {
    Rows::Split(LoadRawPartial(row, pairs), first, second);
  } else {
    Rows::Split(LoadRaw(row), first, second);
  }
}

// Sums over each block of 4 lanes; a template so that only the form that fits the target is
// compiled.
using D4 = hn::CappedTag<float, 4>;
template <class V>
HWY_INLINE hn::Vec<D4> SumBlocks(V v) {
  // Not pointers, as clang-tidy takes vector types to be.
  constexpr size_t kCount = sizeof(V) / sizeof(hn::Vec<D4>);  // NOLINT(bugprone-sizeof-expression)
  if constexpr (kCount == 1) {
    return v;
  } else {
    const hn::Half<hn::DFromV<V>> half;
    return SumBlocks(hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

// Sums over lanes of four vectors at once.
static HWY_INLINE hn::Vec<D4> SumLanes4(VF a, VF b, VF c, VF e) {
  using DU64 = hn::Repartition<uint64_t, DF>;
  const DF d;
  const DU64 d64;
  const VF ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const VF ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto ab64 = hn::BitCast(d64, ab);
  const auto ce64 = hn::BitCast(d64, ce);
  return SumBlocks(hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, ab64, ce64)),
                           hn::BitCast(d, hn::InterleaveUpper(d64, ab64, ce64))));
}

static HWY_INLINE float SumLanes(VF v) { return hn::GetLane(hn::SumOfLanes(DF(), v)); }
static HWY_INLINE float LargestLane(VF v) { return hn::GetLane(hn::MaxOfLanes(DF(), v)); }

// 2^x for x <= 0, relative error below 2e-7; arguments below -125 count as -125.
static HWY_INLINE VF Exp2(VF x) {
  const DF d;
  const DI di;
  x = hn::Max(x, hn::Set(d, -125.0f));
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const VF shifter = hn::Set(d, 12582912.0f);
  const VF shifted = hn::Add(x, shifter);
  const VF f = hn::Sub(x, hn::Sub(shifted, shifter));  // [-1/2, 1/2], exact
  VF y = hn::Set(d, 0.0013390863364533504f);
  y = hn::MulAdd(y, f, hn::Set(d, 0.009676031918326564f));
  y = hn::MulAdd(y, f, hn::Set(d, 0.05550357114219461f));
  y = hn::MulAdd(y, f, hn::Set(d, 0.24022107485308208f));
  y = hn::MulAdd(y, f, hn::Set(d, 0.6931471880262287f));
  y = hn::MulAdd(y, f, hn::Set(d, 1.0000000754548972f));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, y), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
}

// The bits of bf16(v), rounded to nearest even, in the low half of each lane. v must not be NaN.
static HWY_INLINE VU RoundToBf16Bits(VF v) {
  const DU d;
  const VU bits = hn::BitCast(d, v);
  const VU odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d, 1u));
  return hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(d, 0x7fffu))));
}

// kLanes bf16 values; LoadBf16Up to `count` of them (0 to kLanes), the others read 0.
static HWY_INLINE VF LoadBf16(const uint16_t* from) {
  const hn::Rebind<uint16_t, DF> d16;
  return hn::BitCast(DF(), hn::ShiftLeft<16>(hn::PromoteTo(DU(), hn::LoadU(d16, from))));
}
static HWY_INLINE VF LoadBf16UpTo(const uint16_t* from, int64_t count) {
  if (count >= kLanes) return LoadBf16(from);
  HWY_ALIGN uint16_t buffer[16] = {};
  if (count > 0) std::memcpy(buffer, from, count * sizeof(uint16_t));
  return LoadBf16(buffer);
}

// kLanes signed bytes as floats; the UpTo form reads only `count` of them, the others are 0.
static HWY_INLINE VF LoadInt8(const int8_t* from) {
  const hn::Rebind<int8_t, DI> d8;
  return hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadU(d8, from)));
}
static HWY_INLINE VF LoadInt8UpTo(const int8_t* from, int64_t count) {
  if (count >= kLanes) return LoadInt8(from);
  HWY_ALIGN int8_t buffer[16] = {};
  if (count > 0) std::memcpy(buffer, from, count);
  return LoadInt8(buffer);
}

}  // namespace HWY_NAMESPACE
}  // namespace fourierkv::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
