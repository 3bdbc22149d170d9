// Outputs of one compact segment: o_F += C_V^T (B^T p), o_R += V_R^T p. Compiled once per
// instruction set.

#if defined(FOURIERKV_COMPACT_OUTPUTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOURIERKV_COMPACT_OUTPUTS_INL_H_
#undef FOURIERKV_COMPACT_OUTPUTS_INL_H_
#else
#define FOURIERKV_COMPACT_OUTPUTS_INL_H_
#endif

#include <algorithm>

#include "compute/backend/cpu/compact_run-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fourierkv::cpu {
namespace HWY_NAMESPACE {

// coefficients[g][m] = b = sum over tokens of B[t][m] * p[g][t], four m at a time.
template <int GT>
HWY_INLINE void ProjectWeights(const ChannelPlan& v, const RunState& state) {
  const DF d;
  const int count = v.head.max_coefficients;
  for (int m0 = 0; m0 < count; m0 += 4) {
    VF acc[4][GT];
    const float* column[4];  // columns beyond M repeat the last one and are not used
    HWY_UNROLL(4)
    for (int mm = 0; mm < 4; ++mm) {
      column[mm] = state.v_basis + static_cast<int64_t>(std::min(m0 + mm, count - 1)) * v.tokens;
      HWY_UNROLL(4)
      for (int g = 0; g < GT; ++g) acc[mm][g] = hn::Zero(d);
    }
    const float* weights = state.weights;
    for (int t = 0; t < v.tokens; t += kLanes, weights += GT * kLanes) {
      VF weight[GT];
      HWY_UNROLL(4)
      for (int g = 0; g < GT; ++g) weight[g] = hn::Load(d, weights + g * kLanes);
      HWY_UNROLL(4)
      for (int mm = 0; mm < 4; ++mm) {
        const VF basis = hn::Load(d, column[mm] + t);
        HWY_UNROLL(4)
        for (int g = 0; g < GT; ++g) acc[mm][g] = hn::MulAdd(basis, weight[g], acc[mm][g]);
      }
    }
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) {
      hn::StoreU(SumLanes4(acc[0][g], acc[1][g], acc[2][g], acc[3][g]), D4(),
                 state.coefficients + g * kCoefficientStride + m0);
    }
  }
}

// linear[g][j] += scale * sum over m of c[m][j] * b[g][m] for XT vectors of channels from x. The
// last vector of the last row must not be read past the band's end.
template <class Coefficients, int GT, int XT, bool kLast>
HWY_INLINE void AddSpectralVectors(const ChannelPlan& v, const RunState& state, int b,
                                   const std::byte* payload, float* linear, int x) {
  const DF d;
  const BandLayout& band = v.head.bands[b];
  const auto* data =
      reinterpret_cast<const typename Coefficients::Stored*>(payload + band.data_offset) + x;
  const int64_t total = static_cast<int64_t>(band.coefficients) * band.size - x;
  VF acc[XT][GT];
  HWY_UNROLL(2)
  for (int xx = 0; xx < XT; ++xx) {
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) acc[xx][g] = hn::Zero(d);
  }
  for (int m = 0; m < band.coefficients; ++m) {
    const int64_t row = static_cast<int64_t>(m) * band.size;
    VF weight[GT];
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) {
      weight[g] = hn::Set(d, state.coefficients[g * kCoefficientStride + m]);
    }
    HWY_UNROLL(2)
    for (int xx = 0; xx < XT; ++xx) {
      const int64_t at = row + xx * kLanes;
      VF c;
      if constexpr (kLast) {
        c = Coefficients::LoadUpTo(data + at, total - at);
      } else {
        c = Coefficients::Load(data + at);
      }
      HWY_UNROLL(4)
      for (int g = 0; g < GT; ++g) acc[xx][g] = hn::MulAdd(c, weight[g], acc[xx][g]);
    }
  }
  HWY_UNROLL(2)
  for (int xx = 0; xx < XT; ++xx) {
    const int at = v.start[b] + x + xx * kLanes;
    const VF scale = hn::Load(d, state.v_scale + at);
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) {
      float* out = linear + g * v.size + at;
      hn::Store(hn::MulAdd(scale, acc[xx][g], hn::Load(d, out)), d, out);
    }
  }
}

template <class Coefficients, int GT>
HWY_INLINE void AddSpectralBand(const ChannelPlan& v, const RunState& state, int b,
                                const std::byte* payload, float* linear) {
  const int size = v.head.bands[b].size;
  int x = 0;
  for (; x + 2 * kLanes <= size; x += 2 * kLanes) {
    AddSpectralVectors<Coefficients, GT, 2, false>(v, state, b, payload, linear, x);
  }
  for (; x < size; x += kLanes) {
    AddSpectralVectors<Coefficients, GT, 1, true>(v, state, b, payload, linear, x);
  }
}

template <int GT>
HWY_INLINE void AddSpectral(const ChannelPlan& v, const RunState& state, const std::byte* payload,
                            const std::byte* next, float* linear) {
  for (int b = 0; b < v.bands && v.head.bands[b].spectral(); ++b) {
    PrefetchSpectral(v.head.bands[b], next);
    if (v.head.bands[b].scaled()) {
      AddSpectralBand<Int8Coefficients, GT>(v, state, b, payload, linear);
    } else {
      AddSpectralBand<Bf16Coefficients, GT>(v, state, b, payload, linear);
    }
  }
}

// Resident channels handled at once, so that enough independent sums are in flight.
template <int GT>
constexpr int kChannelTile = GT == 1 ? 4 : 2;

template <class Format, int GT, int JT, int K = 0>
HWY_INLINE void AddWeighted(const VU (&words)[JT], const RowPointers (&rows)[JT], int i, int eighth,
                            const float* weights, VF (&acc)[JT][GT]) {
  if constexpr (K < 8) {
    const DF d;
    VF weight[GT];
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) {
      weight[g] = hn::Load(d, weights + (K * GT + g) * kLanes);
    }
    HWY_UNROLL(4)
    for (int j = 0; j < JT; ++j) {
      const VF value = Format::template Value<K>(words[j], rows[j], i, eighth);
      HWY_UNROLL(4)
      for (int g = 0; g < GT; ++g) acc[j][g] = hn::MulAdd(value, weight[g], acc[j][g]);
    }
    AddWeighted<Format, GT, JT, K + 1>(words, rows, i, eighth, weights, acc);
  }
}

// lanes[j][g] += scale_j * p[g] * values of channel j, for JT channels of the band from j0.
template <class Format, int GT, int JT>
HWY_INLINE void AddResidentTile(const ChannelPlan& v, const RunState& state, const BandLayout& band,
                                const std::byte* payload, const std::byte* next,
                                const float* scales, float* lanes, int j0) {
  const DF d;
  const int eighth = v.tokens / 8;
  RowPointers rows[JT];
  VF acc[JT][GT];
  HWY_UNROLL(4)
  for (int j = 0; j < JT; ++j) {
    rows[j] = ResidentRow<Format>(band, reinterpret_cast<const uint8_t*>(payload), j0 + j, eighth);
    PrefetchResident<Format>(band, next, j0 + j, eighth);
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) acc[j][g] = hn::Zero(d);
  }
  const float* weights = state.weights;
  for (int i = 0; i < eighth / kLanes; ++i, weights += 8 * GT * kLanes) {
    VU words[JT];
    HWY_UNROLL(4)
    for (int j = 0; j < JT; ++j) words[j] = Format::Begin(rows[j], i, eighth);
    AddWeighted<Format, GT, JT>(words, rows, i, eighth, weights, acc);
  }
  const int64_t out_stride = static_cast<int64_t>(state.group) * kLanes;
  HWY_UNROLL(4)
  for (int j = 0; j < JT; ++j) {
    const VF scale = hn::Set(d, scales[j0 + j]);
    float* out = lanes + (j0 + j) * out_stride;
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g, out += kLanes) {
      hn::Store(hn::MulAdd(scale, acc[j][g], hn::Load(d, out)), d, out);
    }
  }
}

template <class Format, int GT>
HWY_INLINE void AddResidentBand(const ChannelPlan& v, const RunState& state, int b,
                                const std::byte* payload, const std::byte* next, int g0) {
  const BandLayout& band = v.head.bands[b];
  const float* scales = state.v_scale + v.start[b];
  float* lanes = state.lanes +
                 (static_cast<int64_t>(v.start[b] - v.resident_start) * state.group + g0) * kLanes;
  constexpr int kTile = kChannelTile<GT>;
  int j = 0;
  for (; j + kTile <= band.size; j += kTile) {
    AddResidentTile<Format, GT, kTile>(v, state, band, payload, next, scales, lanes, j);
  }
  for (; j < band.size; ++j) {
    AddResidentTile<Format, GT, 1>(v, state, band, payload, next, scales, lanes, j);
  }
}

// Adds the segment's values, weighted by state.weights (whose sums are `sums`), to query heads g0
// ...
template <int GT>
HWY_INLINE void SegmentOutputs(const ChannelPlan& v, const RunState& state, int g0,
                               const float* sums, const std::byte* payload, const std::byte* next) {
  const DF d;
  float* linear = state.linear + static_cast<int64_t>(g0) * v.size;
  if (v.head.max_coefficients > 0) {
    ProjectWeights<GT>(v, state);
    AddSpectral<GT>(v, state, payload, next, linear);
  }
  for (int x = v.resident_start; x < v.size; x += kLanes) {
    const VF offset = hn::Load(d, state.v_offset + x);
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) {
      float* out = linear + g * v.size + x;
      hn::Store(hn::MulAdd(offset, hn::Set(d, sums[g]), hn::Load(d, out)), d, out);
    }
  }
  ForEachResident(v, [&](auto format, int b) HWY_ATTR {
    AddResidentBand<decltype(format), GT>(v, state, b, payload, next, g0);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace fourierkv::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
