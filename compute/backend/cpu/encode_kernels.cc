// Encoding of one KV head of one segment: a pass that gathers statistics and projects on the basis,
// then the bands one by one. The error of spectral channels comes from Parseval's theorem:
// sum x^2 - sum c^2 + sum (c - c^)^2. A rotated head is turned first; rotations keep errors.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "compute/backend/cpu/kernels.h"
#include "compute/backend/cpu/rotation_kernels.h"
#include "compute/base/bfloat16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compute/backend/cpu/encode_kernels.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come before the files that are compiled once per target.
#include "compute/backend/cpu/encode_residents-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fourierkv::cpu {
namespace HWY_NAMESPACE {

// The part of the error that rounding did not make, from Parseval's theorem: sum x^2 - sum c^2.
template <class Rows>
HWY_INLINE double Remainder(const EncodeState<Rows>& state, int channel, double energy) {
  return std::max(0.0, state.energy[Rows::Arranged(channel)] - energy);
}

// Coefficients c [M][padded] as bf16.
template <class Rows>
double StoreCoefficients(const EncodeState<Rows>& state, const BandLayout& band, const float* c,
                         int padded, std::byte* payload) {
  auto* data = reinterpret_cast<uint16_t*>(payload + band.data_offset);
  double error = 0;
  for (int j = 0; j < band.size; ++j) {
    double energy = 0;
    for (int m = 0; m < band.coefficients; ++m) {
      const float value = c[static_cast<int64_t>(m) * padded + j];
      uint16_t& bits = data[static_cast<int64_t>(m) * band.size + j];
      bits = FloatToBf16(value);
      const double rounding = static_cast<double>(value) - Bf16ToFloat(bits);
      energy += static_cast<double>(value) * value;
      error += rounding * rounding;
    }
    error += Remainder(state, band.channels[j], energy);
  }
  return error;
}

template <class Rows>
double EncodeSpectral(const EncodeState<Rows>& state, const BandLayout& band, std::byte* payload,
                      ScratchArena& arena) {
  const DF d;
  const DI di;
  const int n = band.size;
  const int padded = RoundUpToLanes(n);
  float* c = arena.Take<float>(static_cast<int64_t>(band.coefficients) * padded);
  for (int m = 0; m < band.coefficients; ++m) {
    const float* from = state.projection + static_cast<int64_t>(m) * state.width;
    float* to = c + static_cast<int64_t>(m) * padded;
    for (int j = 0; j < n; ++j) to[j] = from[Rows::Arranged(band.channels[j])];
    std::fill(to + n, to + padded, 0.0f);
  }
  if (!band.scaled()) return StoreCoefficients(state, band, c, padded, payload);
  auto* scales = reinterpret_cast<uint16_t*>(payload + band.scale_offset);
  auto* data = reinterpret_cast<int8_t*>(payload + band.data_offset);
  double error = 0;
  HWY_ALIGN float scale[kLanes];
  HWY_ALIGN float reciprocal[kLanes];
  HWY_ALIGN float residual[kLanes];
  HWY_ALIGN int8_t quantised[kLanes];
  for (int x = 0; x < n; x += kLanes) {
    VF largest = hn::Zero(d);
    VF energy = hn::Zero(d);
    for (int m = 0; m < band.coefficients; ++m) {
      const VF value = hn::Load(d, c + m * padded + x);
      largest = hn::Max(largest, hn::Abs(value));
      energy = hn::MulAdd(value, value, energy);
    }
    hn::Store(hn::Div(largest, hn::Set(d, 127.0f)), d, scale);
    const int count = std::min(kLanes, n - x);
    for (int j = 0; j < kLanes; ++j) {
      const uint16_t bits = FloatToBf16Up(scale[j]);
      if (j < count) scales[x + j] = bits;
      scale[j] = Bf16ToFloat(bits);
      reciprocal[j] = Reciprocal(scale[j]);
    }
    const VF scales_v = hn::Load(d, scale);
    const VF reciprocals = hn::Load(d, reciprocal);
    VF squares = hn::Zero(d);
    for (int m = 0; m < band.coefficients; ++m) {
      const VF value = hn::Load(d, c + m * padded + x);
      const VI q =
          hn::Min(hn::Max(hn::NearestInt(Divide(value, scales_v, reciprocals)), hn::Set(di, -127)),
                  hn::Set(di, 127));
      const VF difference = hn::NegMulAdd(hn::ConvertTo(d, q), scales_v, value);
      squares = hn::MulAdd(difference, difference, squares);
      const hn::Rebind<int8_t, DI> d8;
      hn::Store(hn::DemoteTo(d8, q), d8, quantised);
      std::memcpy(data + static_cast<int64_t>(m) * n + x, quantised, count);
    }
    hn::Store(energy, d, residual);
    HWY_ALIGN float rounding[kLanes];
    hn::Store(squares, d, rounding);
    for (int j = 0; j < count; ++j) {
      error += Remainder(state, band.channels[x + j], residual[j]) + rounding[j];
    }
  }
  return error;
}

// Squares of very large or small values leave float's range; doubles do not.
static void MeasureInDouble(const PartLayout& layout, int head, KvDtype dtype,
                            const uint16_t* dense, const std::byte* payload, ScratchArena& arena,
                            EncodeTotals& totals) {
  const int64_t stride = (layout.head_dim + 15) / 16 * 16;
  const float* rows = DecodeHeadRotatedBack(layout, head, payload, stride, arena);
  totals.energy = totals.error = 0;
  for (int t = 0; t < layout.segment_tokens; ++t) {
    for (int c = 0; c < layout.head_dim; ++c) {
      const double x = KvToFloat(dense[static_cast<int64_t>(t) * layout.head_dim + c], dtype);
      const double difference = x - rows[t * stride + c];
      totals.energy += x * x;
      totals.error += difference * difference;
    }
  }
}

// Encodes rows whose magnitudes are within bounds, or finds out that they are not.
template <class Rows>
EncodeTotals EncodeRows(const PartLayout& layout, int head, const typename Rows::Value* rows,
                        int64_t stride, uint16_t* largest_magnitude, std::byte* payload,
                        ScratchArena& arena) {
  EncodeState<Rows> state;
  state.layout = &layout;
  state.head = &layout.heads[head];
  state.rows = rows;
  state.stride = stride;
  state.head_dim = layout.head_dim;
  state.tokens = layout.segment_tokens;
  state.width = RoundUpToChunk(layout.head_dim);
  state.coefficients = state.head->max_coefficients;
  FirstPass(state, arena);

  EncodeTotals totals;
  if constexpr (kStored<Rows>) {
    *largest_magnitude = state.largest_magnitude;
    totals.valid = state.largest_magnitude <= Rows::kLargestMagnitude;
    if (!totals.valid) return totals;
  }
  std::memset(payload + state.head->offset, 0, state.head->bytes);  // padding
  for (int x = 0; x < state.width; ++x) totals.energy += state.energy[x];
  for (const BandLayout& band : state.head->bands) {
    if (band.spectral()) {
      totals.error += EncodeSpectral(state, band, payload, arena);
      continue;
    }
    switch (band.bits) {
      case 2:
        totals.error += EncodeResident<Rows, 2>(state, band, payload, arena);
        break;
      case 3:
        totals.error += EncodeResident<Rows, 3>(state, band, payload, arena);
        break;
      case 4:
        totals.error += EncodeResident<Rows, 4>(state, band, payload, arena);
        break;
      case 8:
        totals.error += EncodeResident<Rows, 8>(state, band, payload, arena);
        break;
      default:
        totals.error += EncodeResident<Rows, 16>(state, band, payload, arena);
    }
  }
  return totals;
}

// n is a multiple of 1024.
static uint16_t LargestMagnitude(const uint16_t* dense, int64_t n) {
  const DU16 d;
  auto largest = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kChunk) {
    largest = hn::Max(largest, hn::And(hn::LoadU(d, dense + i), hn::Set(d, uint16_t{0x7fff})));
  }
  return LargestLane16(largest);
}

// Encodes X U.
static EncodeTotals EncodeRotated(const PartLayout& layout, int head, KvDtype dtype,
                                  const uint16_t* dense, uint16_t* largest_magnitude,
                                  std::byte* payload, ScratchArena& arena) {
  const int d = layout.head_dim;
  const int64_t n = static_cast<int64_t>(layout.segment_tokens) * d;
  *largest_magnitude = LargestMagnitude(dense, n);
  if (*largest_magnitude >
      (dtype == KvDtype::kBf16 ? Bf16Rows::kLargestMagnitude : Fp16Rows::kLargestMagnitude)) {
    EncodeTotals totals;
    totals.valid = false;
    return totals;
  }
  const int width = RoundUpToChunk(d);
  float* x = arena.Take<float>(n);
  float* rows = arena.Take<float>(static_cast<int64_t>(layout.segment_tokens) * width);
  KvToFloats(dense, n, dtype, x);
  if (width > d) {
    for (int t = 0; t < layout.segment_tokens; ++t) {
      std::fill_n(rows + static_cast<int64_t>(t) * width + d, width - d, 0.0f);
    }
  }
  RotateRows(layout.heads[head].rotation, d, layout.segment_tokens, x, d, rows, width);
  return EncodeRows<FloatRows>(layout, head, rows, width, largest_magnitude, payload, arena);
}

EncodeTotals EncodeHead(const PartLayout& layout, int head, KvDtype dtype, const uint16_t* dense,
                        std::byte* payload, ScratchArena& arena) {
  uint16_t largest = 0;  // bits of the largest |x|
  EncodeTotals totals;
  if (layout.heads[head].rotation != nullptr) {
    totals = EncodeRotated(layout, head, dtype, dense, &largest, payload, arena);
  } else if (dtype == KvDtype::kBf16) {
    totals = EncodeRows<Bf16Rows>(layout, head, dense, layout.head_dim, &largest, payload, arena);
  } else {
    totals = EncodeRows<Fp16Rows>(layout, head, dense, layout.head_dim, &largest, payload, arena);
  }
  const float magnitude = KvToFloat(largest, dtype);
  if (totals.valid && (magnitude > 1e15f || (magnitude < 1e-12f && magnitude > 0))) {
    MeasureInDouble(layout, head, dtype, dense, payload, arena, totals);
  }
  return totals;
}

}  // namespace HWY_NAMESPACE
}  // namespace fourierkv::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fourierkv::cpu {

HWY_EXPORT(EncodeHead);

EncodeTotals EncodeHead(const PartLayout& layout, int head, KvDtype dtype, const uint16_t* dense,
                        std::byte* payload, ScratchArena& arena) {
  return HWY_DYNAMIC_DISPATCH(EncodeHead)(layout, head, dtype, dense, payload, arena);
}

}  // namespace fourierkv::cpu
#endif  // HWY_ONCE
