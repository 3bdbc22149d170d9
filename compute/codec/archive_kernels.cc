#include "compute/codec/archive_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "compute/base/bfloat16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compute/codec/archive_kernels.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come before the files that are compiled once per target.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace fourierkv::archive {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Lengths are whole numbers of 8 floats here: heads and blocks are multiples of 8.
using DF = hn::CappedTag<float, 8>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using D16 = hn::Rebind<int16_t, DF>;
using DU16 = hn::Rebind<uint16_t, DF>;
using DH = hn::Rebind<hwy::float16_t, DF>;
using VF = hn::Vec<DF>;

constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));

uint16_t Widen(KvDtype dtype, const uint16_t* from, int64_t n, float* to) {
  const DF d;
  const DU du;
  const DU16 du16;
  auto largest = hn::Zero(du16);
  const auto magnitude = hn::Set(du16, uint16_t{0x7fff});
  for (int64_t i = 0; i < n; i += kLanes) {
    const auto raw = hn::LoadU(du16, from + i);
    largest = hn::Max(largest, hn::And(raw, magnitude));
    if (dtype == KvDtype::kBf16) {
      hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, raw))), d, to + i);
    } else {
      hn::StoreU(hn::PromoteTo(d, hn::BitCast(DH(), raw)), d, to + i);
    }
  }
  return hn::GetLane(hn::MaxOfLanes(du16, largest));
}

void Narrow(KvDtype dtype, const float* from, int64_t n, uint16_t* to) {
  const DF d;
  const DU du;
  const DU16 du16;
  const VF most = hn::Set(d, 65504.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const VF x = hn::LoadU(d, from + i);
    if (dtype == KvDtype::kBf16) {
      const auto bits = hn::BitCast(du, x);
      const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
      const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffu))));
      // Signed saturation leaves sign-extended 16-bit values as they are.
      const auto narrow = hn::ShiftRight<16>(hn::ShiftLeft<16>(hn::BitCast(DI(), rounded)));
      hn::StoreU(hn::BitCast(du16, hn::DemoteTo(D16(), narrow)), du16, to + i);
    } else {
      const VF held = hn::Max(hn::Min(x, most), hn::Neg(most));
      hn::StoreU(hn::BitCast(du16, hn::DemoteTo(DH(), held)), du16, to + i);
    }
  }
}

void Turn(const float* cos, const float* sin, int64_t tokens, int half, bool back, float* x) {
  const DF d;
  // D / 2 is a multiple of 4 only.
  const hn::CappedTag<float, 4> d4;
  const auto sign4 = hn::Set(d4, back ? -1.0f : 1.0f);
  const VF sign = hn::Set(d, back ? -1.0f : 1.0f);
  const auto turn = [half](auto tag, auto s, const float* c, const float* sn, float* low) {
    const auto a = hn::LoadU(tag, low);
    const auto b = hn::LoadU(tag, low + half);
    const auto co = hn::LoadU(tag, c);
    const auto si = hn::Mul(hn::LoadU(tag, sn), s);
    hn::StoreU(hn::NegMulAdd(b, si, hn::Mul(a, co)), tag, low);
    hn::StoreU(hn::MulAdd(a, si, hn::Mul(b, co)), tag, low + half);
  };
  for (int64_t t = 0; t < tokens; ++t, x += 2 * half, cos += half, sin += half) {
    int i = 0;
    for (; i + kLanes <= half; i += kLanes) turn(d, sign, cos + i, sin + i, x + i);
    for (; i < half; i += static_cast<int>(hn::Lanes(d4))) {
      turn(d4, sign4, cos + i, sin + i, x + i);
    }
  }
}

bool Quantize(const float* y, int64_t n, float rounding, int16_t* to) {
  const DF d;
  const VF add = hn::Set(d, rounding);
  const VF limit = hn::Set(d, 32767.0f);
  auto fits = hn::Eq(add, add);
  for (int64_t i = 0; i < n; i += kLanes) {
    const VF v = hn::LoadU(d, y + i);
    const VF magnitude = hn::Abs(v);
    fits = hn::And(fits, hn::Lt(magnitude, limit));  // false for NaN
    const auto q = hn::ConvertTo(DI(), hn::CopySign(hn::Add(magnitude, add), v));
    hn::StoreU(hn::DemoteTo(D16(), q), D16(), to + i);
  }
  return hn::AllTrue(d, fits);
}

VF LoadFloat(const int16_t* q) {
  return hn::ConvertTo(DF(), hn::PromoteTo(DI(), hn::LoadU(D16(), q)));
}

// Sums in float over short runs, in double over these.
template <class Term>
double Sum(int64_t n, Term term) {
  constexpr int64_t kRun = 1024;
  const DF d;
  double total = 0;
  for (int64_t first = 0; first < n; first += kRun) {
    VF sum0 = hn::Zero(d), sum1 = hn::Zero(d);
    const int64_t end = std::min(n, first + kRun);
    int64_t i = first;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      const VF a = term(i), b = term(i + kLanes);
      sum0 = hn::MulAdd(a, a, sum0);
      sum1 = hn::MulAdd(b, b, sum1);
    }
    for (; i < end; i += kLanes) {
      const VF a = term(i);
      sum0 = hn::MulAdd(a, a, sum0);
    }
    total += hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  }
  return total;
}

double SumOfSquares(const float* x, int64_t n) {
  return Sum(n, [x](int64_t i) HWY_ATTR { return hn::LoadU(DF(), x + i); });
}

double SquaredDifference(const float* y, const int16_t* q, int64_t n) {
  return Sum(
      n, [y, q](int64_t i) HWY_ATTR { return hn::Sub(hn::LoadU(DF(), y + i), LoadFloat(q + i)); });
}

void Subtract(const float* y, const int16_t* q, int64_t n, float* to) {
  const DF d;
  for (int64_t i = 0; i < n; i += kLanes) {
    hn::StoreU(hn::Sub(hn::LoadU(d, y + i), LoadFloat(q + i)), d, to + i);
  }
}

void ToFloat(const int16_t* q, int64_t n, float* to) {
  for (int64_t i = 0; i < n; i += kLanes) hn::StoreU(LoadFloat(q + i), DF(), to + i);
}

bool AllZero(const int16_t* q, int64_t n) {
  const hn::CappedTag<int16_t, 8> d;
  auto any = hn::Zero(d);
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::Lanes(d))) {
    any = hn::Or(any, hn::LoadU(d, q + i));
  }
  return hn::AllTrue(d, hn::Eq(any, hn::Zero(d)));
}

void ClampedMagnitudes(const int16_t* q, int64_t n, uint8_t* to) {
  const hn::CappedTag<int16_t, 8> d;
  const hn::Rebind<uint8_t, decltype(d)> d8;
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::Lanes(d))) {
    const auto magnitude = hn::Min(hn::Abs(hn::LoadU(d, q + i)), hn::Set(d, int16_t{2}));
    hn::StoreU(hn::DemoteTo(d8, magnitude), d8, to + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fourierkv::archive
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace fourierkv::archive {

HWY_EXPORT(Widen);
HWY_EXPORT(Narrow);
HWY_EXPORT(Turn);
HWY_EXPORT(Quantize);
HWY_EXPORT(SumOfSquares);
HWY_EXPORT(SquaredDifference);
HWY_EXPORT(Subtract);
HWY_EXPORT(ToFloat);
HWY_EXPORT(AllZero);
HWY_EXPORT(ClampedMagnitudes);

uint16_t Widen(KvDtype dtype, const uint16_t* from, int64_t n, float* to) {
  return HWY_DYNAMIC_DISPATCH(Widen)(dtype, from, n, to);
}
void Narrow(KvDtype dtype, const float* from, int64_t n, uint16_t* to) {
  HWY_DYNAMIC_DISPATCH(Narrow)(dtype, from, n, to);
}
void Turn(const float* cos, const float* sin, int64_t tokens, int half, bool back, float* x) {
  HWY_DYNAMIC_DISPATCH(Turn)(cos, sin, tokens, half, back, x);
}
bool Quantize(const float* y, int64_t n, float rounding, int16_t* to) {
  return HWY_DYNAMIC_DISPATCH(Quantize)(y, n, rounding, to);
}
double SumOfSquares(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(SumOfSquares)(x, n); }
double SquaredDifference(const float* y, const int16_t* q, int64_t n) {
  return HWY_DYNAMIC_DISPATCH(SquaredDifference)(y, q, n);
}
void Subtract(const float* y, const int16_t* q, int64_t n, float* to) {
  HWY_DYNAMIC_DISPATCH(Subtract)(y, q, n, to);
}
void ToFloat(const int16_t* q, int64_t n, float* to) { HWY_DYNAMIC_DISPATCH(ToFloat)(q, n, to); }
bool AllZero(const int16_t* q, int64_t n) { return HWY_DYNAMIC_DISPATCH(AllZero)(q, n); }
void ClampedMagnitudes(const int16_t* q, int64_t n, uint8_t* to) {
  HWY_DYNAMIC_DISPATCH(ClampedMagnitudes)(q, n, to);
}

}  // namespace fourierkv::archive

#endif  // HWY_ONCE
