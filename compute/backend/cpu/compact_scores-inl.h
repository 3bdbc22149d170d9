// Scores of one compact segment: s = B (C_K q_F) + K_R q_R. Compiled once per instruction set.

#if defined(FOURIERKV_COMPACT_SCORES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOURIERKV_COMPACT_SCORES_INL_H_
#undef FOURIERKV_COMPACT_SCORES_INL_H_
#else
#define FOURIERKV_COMPACT_SCORES_INL_H_
#endif

#include <algorithm>

#include "compute/backend/cpu/compact_run-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fourierkv::cpu {
namespace HWY_NAMESPACE {

// scaled_q = q * scale; constant[g] = sum of q * offset.
template <int GT>
HWY_INLINE void ScaleQueries(const ChannelPlan& k, const RunState& state, const float* q,
                             float* constant) {
  const DF d;
  VF sums[GT];
  HWY_UNROLL(4)
  for (int g = 0; g < GT; ++g) sums[g] = hn::Zero(d);
  for (int x = 0; x < k.size; x += kLanes) {
    const VF scale = hn::Load(d, state.k_scale + x);
    const VF offset = hn::Load(d, state.k_offset + x);
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) {
      const VF value = hn::Load(d, q + g * k.size + x);
      hn::Store(hn::Mul(value, scale), d, state.scaled_q + g * k.size + x);
      sums[g] = hn::MulAdd(value, offset, sums[g]);
    }
  }
  for (int g = 0; g < GT; ++g) constant[g] = SumLanes(sums[g]);
}

// One vector of channels of four rows. `left`: values to the end of the band, which the last vector
// of the last row would pass.
template <class Coefficients, int GT, bool kLast>
HWY_INLINE void ProjectVector(const typename Coefficients::Stored* data, const int64_t (&row)[4],
                              int64_t left, const float* q, int q_stride, VF (&acc)[4][GT]) {
  const DF d;
  VF query[GT];
  HWY_UNROLL(4)
  for (int g = 0; g < GT; ++g) query[g] = hn::Load(d, q + g * q_stride);
  HWY_UNROLL(4)
  for (int mm = 0; mm < 4; ++mm) {
    VF c;
    if constexpr (kLast) {
      c = Coefficients::LoadUpTo(data + row[mm], left - row[mm]);
    } else {
      c = Coefficients::Load(data + row[mm]);
    }
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) acc[mm][g] = hn::MulAdd(c, query[g], acc[mm][g]);
  }
}

// coefficients[g][m] += sum over channels j of the band of c[m][j] * q[g][j], four m at a time.
template <class Coefficients, int GT>
HWY_INLINE void ProjectBand(const BandLayout& band, const std::byte* payload, const float* q,
                            int q_stride, float* coefficients) {
  const DF d;
  const auto* data =
      reinterpret_cast<const typename Coefficients::Stored*>(payload + band.data_offset);
  const int64_t total = static_cast<int64_t>(band.coefficients) * band.size;
  for (int m0 = 0; m0 < band.coefficients; m0 += 4) {
    VF acc[4][GT];
    int64_t row[4];  // rows beyond M repeat the last one and are not used
    HWY_UNROLL(4)
    for (int mm = 0; mm < 4; ++mm) {
      row[mm] = static_cast<int64_t>(std::min(m0 + mm, band.coefficients - 1)) * band.size;
      HWY_UNROLL(4)
      for (int g = 0; g < GT; ++g) acc[mm][g] = hn::Zero(d);
    }
    int x = 0;
    for (; x + kLanes <= band.size; x += kLanes) {
      ProjectVector<Coefficients, GT, false>(data + x, row, total - x, q + x, q_stride, acc);
    }
    if (x < band.size) {
      ProjectVector<Coefficients, GT, true>(data + x, row, total - x, q + x, q_stride, acc);
    }
    for (int g = 0; g < GT; ++g) {
      HWY_ALIGN float sums[4];
      hn::Store(SumLanes4(acc[0][g], acc[1][g], acc[2][g], acc[3][g]), D4(), sums);
      float* a = coefficients + g * kCoefficientStride + m0;
      for (int mm = 0; mm < std::min(4, band.coefficients - m0); ++mm) a[mm] += sums[mm];
    }
  }
}

// coefficients[g][m] = a = sum over spectral channels j of c[m][j] * scaled_q[g][j].
template <int GT>
HWY_INLINE void ProjectQueries(const ChannelPlan& k, const RunState& state,
                               const std::byte* payload, const std::byte* next) {
  for (int g = 0; g < GT; ++g) {
    std::fill_n(state.coefficients + g * kCoefficientStride, k.head.max_coefficients, 0.0f);
  }
  for (int b = 0; b < k.bands && k.head.bands[b].spectral(); ++b) {
    const BandLayout& band = k.head.bands[b];
    PrefetchSpectral(band, next);
    const float* q = state.scaled_q + k.start[b];
    if (band.scaled()) {
      ProjectBand<Int8Coefficients, GT>(band, payload, q, k.size, state.coefficients);
    } else {
      ProjectBand<Bf16Coefficients, GT>(band, payload, q, k.size, state.coefficients);
    }
  }
}

// Vectors of tokens that one pass keeps in registers, times GT query heads.
template <int GT>
constexpr int kScoreVectors = kVectorRegisters == 32 ? (GT <= 2 ? 8 : 4) : (GT <= 2 ? 4 : 2);

template <int GT>
using ScoreTile = VF[kScoreVectors<GT>][GT];

// The compile-time vector number K0 + i of a pass that starts at vector K0.
template <class Format, int GT, int K0, int I = 0>
HWY_INLINE void AddValues(VU words, RowPointers row, int i, int eighth, const VF (&q)[GT],
                          ScoreTile<GT>& acc) {
  if constexpr (I < kScoreVectors<GT>) {
    const VF value = Format::template Value<K0 + I>(words, row, i, eighth);
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) acc[I][g] = hn::MulAdd(value, q[g], acc[I][g]);
    AddValues<Format, GT, K0, I + 1>(words, row, i, eighth, q, acc);
  }
}

template <class Format, int GT, int K0>
HWY_INLINE void AddResidents(const BandLayout& band, const std::byte* payload,
                             const std::byte* next, const float* q, int q_stride, int i, int eighth,
                             ScoreTile<GT>& acc) {
  const DF d;
  const auto* base = reinterpret_cast<const uint8_t*>(payload);
  const bool prefetch = K0 == 0 && i == 0;
  for (int j = 0; j < band.size; ++j) {
    if (prefetch) PrefetchResident<Format>(band, next, j, eighth);
    const RowPointers row = ResidentRow<Format>(band, base, j, eighth);
    VF weight[GT];
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) weight[g] = hn::Set(d, q[g * q_stride + j]);
    AddValues<Format, GT, K0>(Format::Begin(row, i, eighth), row, i, eighth, weight, acc);
  }
}

// Scores of vectors K0 ... of step i.
template <int GT, int K0>
HWY_INLINE void ScorePass(const ChannelPlan& k, const RunState& state, const std::byte* payload,
                          const std::byte* next, const float* constant, int i) {
  constexpr int kVectors = kScoreVectors<GT>;
  const DF d;
  const int vector = 8 * i + K0;
  ScoreTile<GT> acc;
  HWY_UNROLL(8)
  for (int v = 0; v < kVectors; ++v) {
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) acc[v][g] = hn::Set(d, constant[g]);
  }
  const float* basis = state.k_basis + vector * kLanes;
  const float* coefficients = state.coefficients;
  for (int m = 0; m < k.head.max_coefficients; ++m, basis += k.tokens) {
    VF a[GT];
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) a[g] = hn::Set(d, coefficients[g * kCoefficientStride + m]);
    HWY_UNROLL(8)
    for (int v = 0; v < kVectors; ++v) {
      const VF column = hn::Load(d, basis + v * kLanes);
      HWY_UNROLL(4)
      for (int g = 0; g < GT; ++g) acc[v][g] = hn::MulAdd(column, a[g], acc[v][g]);
    }
  }
  const int eighth = k.tokens / 8;
  ForEachResident(k, [&](auto format, int b) HWY_ATTR {
    AddResidents<decltype(format), GT, K0>(k.head.bands[b], payload, next,
                                           state.scaled_q + k.start[b], k.size, i, eighth, acc);
  });
  float* scores = state.weights + vector * GT * kLanes;
  HWY_UNROLL(8)
  for (int v = 0; v < kVectors; ++v) {
    HWY_UNROLL(4)
    for (int g = 0; g < GT; ++g) hn::Store(acc[v][g], d, scores + (v * GT + g) * kLanes);
  }
}

template <int GT, int K0 = 0>
HWY_INLINE void ScorePasses(const ChannelPlan& k, const RunState& state, const std::byte* payload,
                            const std::byte* next, const float* constant, int i) {
  if constexpr (K0 < 8) {
    ScorePass<GT, K0>(k, state, payload, next, constant, i);
    ScorePasses<GT, K0 + kScoreVectors<GT>>(k, state, payload, next, constant, i);
  }
}

// state.weights = scores of GT query heads, rows of state.q at q, in units of log 2.
template <int GT>
HWY_INLINE void SegmentScores(const ChannelPlan& k, const RunState& state, const float* q,
                              const std::byte* payload, const std::byte* next) {
  float constant[GT];
  ScaleQueries<GT>(k, state, q, constant);
  ProjectQueries<GT>(k, state, payload, next);
  for (int i = 0; i < k.tokens / (8 * kLanes); ++i) {
    ScorePasses<GT>(k, state, payload, next, constant, i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fourierkv::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
