// First pass of encoding: what must be known about a head's channels before anything is quantised.
// Rows are read in tiles of tokens that fit in the first-level cache, lanes running over channels.
// Compiled once per instruction set.

#if defined(FOURIERKV_ENCODE_STATISTICS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOURIERKV_ENCODE_STATISTICS_INL_H_
#undef FOURIERKV_ENCODE_STATISTICS_INL_H_
#else
#define FOURIERKV_ENCODE_STATISTICS_INL_H_
#endif

#include <algorithm>
#include <limits>
#include <type_traits>

#include "compute/backend/cpu/kernels.h"
#include "compute/backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fourierkv::cpu {
namespace HWY_NAMESPACE {

constexpr int kTileTokens = 64;

// Arrays over channels are arranged (simd-inl.h) and have `width` floats.
template <class Rows>
struct EncodeState {
  const PartLayout* layout;
  const HeadLayout* head;
  const typename Rows::Value* rows;  // [tokens][stride]
  int64_t stride;
  int head_dim;
  int tokens;
  int width;
  int coefficients;       // largest M of the head
  uint8_t* has_spectral;  // per chunk
  uint8_t* has_resident;
  float* energy;  // [width]: sum of squares
  float* low;     // [width]: smallest value; only in chunks with residents
  float* high;
  float* projection;               // [coefficients][width]
  uint16_t largest_magnitude = 0;  // bits of the largest |x|
};

// Whether rows are what was received, which has yet to be checked.
template <class Rows>
constexpr bool kStored = std::is_same_v<typename Rows::Value, uint16_t>;

static HWY_INLINE uint16_t LargestLane16(hn::Vec<DU16> v) {
  HWY_ALIGN uint16_t lanes[2 * kLanes];
  hn::Store(v, DU16(), lanes);
  return *std::max_element(lanes, lanes + 2 * kLanes);
}

template <class Rows, bool kPartial, bool kRange>
void GatherStatistics(EncodeState<Rows>& state, int t0, int at, int pairs) {
  const DF d;
  const DU16 du16;
  VF energy0 = hn::Zero(d), energy1 = hn::Zero(d);
  VF low0 = hn::Load(d, state.low + at), low1 = hn::Load(d, state.low + at + kLanes);
  VF high0 = hn::Load(d, state.high + at), high1 = hn::Load(d, state.high + at + kLanes);
  auto magnitude = hn::Zero(du16);
  const auto magnitude_bits = hn::Set(du16, uint16_t{0x7fff});
  const int64_t ahead = kTileTokens * state.stride;
  const auto* row = state.rows + t0 * state.stride + at;
  for (int t = 0; t < kTileTokens; ++t, row += state.stride) {
    hwy::Prefetch(row + ahead);
    VF x0, x1;
    if constexpr (kStored<Rows>) {
      const VU raw = kPartial ? LoadRawPartial(row, pairs) : LoadRaw(row);
      magnitude = hn::Max(magnitude, hn::And(hn::BitCast(du16, raw), magnitude_bits));
      Rows::Split(raw, x0, x1);
    } else {
      LoadChunk<Rows, kPartial>(row, pairs, x0, x1);
    }
    energy0 = hn::MulAdd(x0, x0, energy0);
    energy1 = hn::MulAdd(x1, x1, energy1);
    if constexpr (kRange) {
      low0 = hn::Min(low0, x0);
      low1 = hn::Min(low1, x1);
      high0 = hn::Max(high0, x0);
      high1 = hn::Max(high1, x1);
    }
  }
  hn::Store(hn::Add(energy0, hn::Load(d, state.energy + at)), d, state.energy + at);
  hn::Store(hn::Add(energy1, hn::Load(d, state.energy + at + kLanes)), d,
            state.energy + at + kLanes);
  hn::Store(low0, d, state.low + at);
  hn::Store(low1, d, state.low + at + kLanes);
  hn::Store(high0, d, state.high + at);
  hn::Store(high1, d, state.high + at + kLanes);
  state.largest_magnitude = std::max(state.largest_magnitude, LargestLane16(magnitude));
}

// projection[m0 ...][chunk] += sum over the tile's tokens of B[t][m] * x[t].
template <class Rows, bool kPartial, int MB>
HWY_INLINE void ProjectBlock(const EncodeState<Rows>& state, int t0, int at, int pairs, int m0) {
  const DF d;
  const Basis& basis = *state.layout->basis;
  VF acc[MB][2];
  HWY_UNROLL(8)
  for (int m = 0; m < MB; ++m) acc[m][0] = acc[m][1] = hn::Zero(d);
  const auto* row = state.rows + t0 * state.stride + at;
  const float* factors = basis.row(t0) + m0;
  for (int t = 0; t < kTileTokens; ++t) {
    VF x0, x1;
    LoadChunk<Rows, kPartial>(row, pairs, x0, x1);
    HWY_UNROLL(8)
    for (int m = 0; m < MB; ++m) {
      const VF factor = hn::Set(d, factors[m]);
      acc[m][0] = hn::MulAdd(factor, x0, acc[m][0]);
      acc[m][1] = hn::MulAdd(factor, x1, acc[m][1]);
    }
    row += state.stride;
    factors += basis.columns();
  }
  HWY_UNROLL(8)
  for (int m = 0; m < MB; ++m) {
    float* sum = state.projection + static_cast<int64_t>(m0 + m) * state.width + at;
    hn::Store(hn::Add(hn::Load(d, sum), acc[m][0]), d, sum);
    hn::Store(hn::Add(hn::Load(d, sum + kLanes), acc[m][1]), d, sum + kLanes);
  }
}

template <class Rows, bool kPartial>
void Project(const EncodeState<Rows>& state, int t0, int at, int pairs) {
  int m = 0;
  for (; m + 8 <= state.coefficients; m += 8) {
    ProjectBlock<Rows, kPartial, 8>(state, t0, at, pairs, m);
  }
  const int rest = state.coefficients - m;
  if (rest & 4) {
    ProjectBlock<Rows, kPartial, 4>(state, t0, at, pairs, m);
    m += 4;
  }
  if (rest & 2) {
    ProjectBlock<Rows, kPartial, 2>(state, t0, at, pairs, m);
    m += 2;
  }
  if (rest & 1) ProjectBlock<Rows, kPartial, 1>(state, t0, at, pairs, m);
}

template <class Rows, bool kPartial>
void FirstPassChunk(EncodeState<Rows>& state, int t0, int at, int pairs) {
  const int chunk = at / kChunk;
  if (state.has_resident[chunk]) {
    GatherStatistics<Rows, kPartial, true>(state, t0, at, pairs);
  } else {
    GatherStatistics<Rows, kPartial, false>(state, t0, at, pairs);
  }
  if (state.has_spectral[chunk]) Project<Rows, kPartial>(state, t0, at, pairs);
}

template <class Rows>
void FirstPass(EncodeState<Rows>& state, ScratchArena& arena) {
  const int chunks = state.width / kChunk;
  state.has_spectral = arena.Take<uint8_t>(chunks);
  state.has_resident = arena.Take<uint8_t>(chunks);
  std::fill_n(state.has_spectral, chunks, 0);
  std::fill_n(state.has_resident, chunks, 0);
  for (const BandLayout& band : state.head->bands) {
    uint8_t* has = band.spectral() ? state.has_spectral : state.has_resident;
    for (int j = 0; j < band.size; ++j) has[band.channels[j] / kChunk] = 1;
  }
  state.energy = arena.Take<float>(state.width);
  state.low = arena.Take<float>(state.width);
  state.high = arena.Take<float>(state.width);
  const int64_t projection_size = static_cast<int64_t>(state.coefficients) * state.width;
  state.projection = arena.Take<float>(projection_size);
  std::fill_n(state.energy, state.width, 0.0f);
  std::fill_n(state.low, state.width, std::numeric_limits<float>::infinity());
  std::fill_n(state.high, state.width, -std::numeric_limits<float>::infinity());
  std::fill_n(state.projection, projection_size, 0.0f);

  const int whole = kStored<Rows> ? state.head_dim / kChunk * kChunk : state.width;
  const int pairs = (state.head_dim - whole) / 2;
  for (int t0 = 0; t0 < state.tokens; t0 += kTileTokens) {
    for (int at = 0; at < whole; at += kChunk) FirstPassChunk<Rows, false>(state, t0, at, 0);
    if constexpr (kStored<Rows>) {
      if (pairs > 0) FirstPassChunk<Rows, true>(state, t0, whole, pairs);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fourierkv::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
