// Resident channels of one head: their grids and integers. One 32-bit word per lane gathers the
// tokens of one stored word (2 to 32 of them), so that only whole words change from token-major to
// channel-major order. Compiled once per instruction set.

#if defined(FOURIERKV_ENCODE_RESIDENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOURIERKV_ENCODE_RESIDENTS_INL_H_
#undef FOURIERKV_ENCODE_RESIDENTS_INL_H_
#else
#define FOURIERKV_ENCODE_RESIDENTS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <limits>

#include "compute/backend/cpu/encode_statistics-inl.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/quantiser_grid.h"

HWY_BEFORE_NAMESPACE();
namespace fourierkv::cpu {
namespace HWY_NAMESPACE {

// x / y of which y's reciprocal is known, correctly rounded (but for tiny y).
static HWY_INLINE VF Divide(VF x, VF y, VF reciprocal) {
  const VF quotient = hn::Mul(x, reciprocal);
  return hn::MulAdd(hn::NegMulAdd(quotient, y, x), reciprocal, quotient);
}

// 0 for 0, so that quotients are 0 where everything is.
static float Reciprocal(float scale) {
  return scale > 0 ? std::min(1.0f / scale, std::numeric_limits<float>::max()) : 0.0f;
}

// Directed rounding of a double; exact because every bf16 is a float.
static uint16_t RoundUpToBf16(double value) {
  float nearest = static_cast<float>(value);
  if (nearest < value) nearest = std::nextafter(nearest, std::numeric_limits<float>::infinity());
  return FloatToBf16Up(nearest);
}

static uint16_t RoundDownToBf16(double value) {
  float nearest = static_cast<float>(value);
  if (nearest > value) nearest = std::nextafter(nearest, -std::numeric_limits<float>::infinity());
  return FloatToBf16Down(nearest);
}

// Channels of one band within one chunk.
struct Destinations {
  int count = 0;
  uint8_t lane[kChunk];     // in the chunk
  uint32_t* words[kChunk];  // the channel's first stored word
  uint32_t* high[kChunk];   // the same in the plane of upper bits; 3 bits only
};

// Arranged arrays over one chunk, and the tokens of a stored word: token k of word i is i *
// word_step + k * token_step.
struct Quantiser {
  VF offset[2], scale[2], reciprocal[2];
  int word_step;
  int token_step;
  int words;
};

template <int kBits>
HWY_INLINE VU QuantiseOne(const Quantiser& quantiser, int e, VF x, VF& error) {
  const DF d;
  if constexpr (kBits == 16) {
    const VU bits = RoundToBf16Bits(x);
    const VF difference = hn::Sub(x, hn::BitCast(d, hn::ShiftLeft<16>(bits)));
    error = hn::MulAdd(difference, difference, error);
    return bits;
  } else {
    const VF shifted = hn::Sub(x, quantiser.offset[e]);
    const VF quotient = Divide(shifted, quantiser.scale[e], quantiser.reciprocal[e]);
    // Lanes of other bands may hold anything; clamping first keeps the conversion defined.
    const VF clamped =
        hn::Min(hn::Max(quotient, hn::Zero(d)), hn::Set(d, static_cast<float>((1 << kBits) - 1)));
    const VI q = hn::NearestInt(clamped);
    const VF difference = hn::NegMulAdd(hn::ConvertTo(d, q), quantiser.scale[e], shifted);
    error = hn::MulAdd(difference, difference, error);
    return hn::BitCast(DU(), q);
  }
}

// Puts `value` behind the values that a word holds so far: after 32 / kBits of them the first
// stands in the lowest bits.
template <int kBits>
HWY_INLINE VU Push(VU word, VU value) {
  return hn::Or(hn::ShiftRight<kBits>(word), hn::ShiftLeft<32 - kBits>(value));
}

template <class Rows>
using RowPointer = const typename Rows::Value*;

// Word i of the channels of a chunk.
template <class Rows, bool kPartial, int kBits>
HWY_INLINE void GatherWord(const EncodeState<Rows>& state, const Quantiser& quantiser, int i,
                           RowPointer<Rows> rows, int pairs, VU (&word)[2], VF (&error)[2]) {
  RowPointer<Rows> row = rows + i * quantiser.word_step * state.stride;
  word[0] = word[1] = hn::Zero(DU());
  HWY_UNROLL(8)
  for (int k = 0; k < 32 / kBits; ++k, row += quantiser.token_step * state.stride) {
    VF x[2];
    LoadChunk<Rows, kPartial>(row, pairs, x[0], x[1]);
    for (int e = 0; e < 2; ++e) {
      word[e] = Push<kBits>(word[e], QuantiseOne<kBits>(quantiser, e, x[e], error[e]));
    }
  }
}

// Word i of the plane of upper bits, and words i and i + S / 32 of the plane of lower bits: both
// hold the same 32 tokens.
template <class Rows, bool kPartial>
HWY_INLINE void GatherPlanes(const EncodeState<Rows>& state, const Quantiser& quantiser, int i,
                             RowPointer<Rows> rows, int pairs, VU (&high)[2], VU (&low)[2][2],
                             VF (&error)[2]) {
  RowPointer<Rows> row = rows + i * state.stride;
  for (int e = 0; e < 2; ++e) high[e] = low[0][e] = low[1][e] = hn::Zero(DU());
  for (int k = 0; k < 16; ++k) {
    for (int half = 0; half < 2; ++half, row += state.tokens / 32 * state.stride) {
      VF x[2];
      LoadChunk<Rows, kPartial>(row, pairs, x[0], x[1]);
      for (int e = 0; e < 2; ++e) {
        const VU q = QuantiseOne<3>(quantiser, e, x[e], error[e]);
        low[half][e] = Push<2>(low[half][e], q);  // the shift drops the upper bit
        high[e] = Push<1>(high[e], hn::ShiftRight<2>(q));
      }
    }
  }
}

static HWY_INLINE void StoreWords(const VU (&word)[2], const Destinations& destinations,
                                  uint32_t* const (&to)[kChunk], int i) {
  HWY_ALIGN uint32_t words[kChunk];
  hn::Store(word[0], DU(), words);
  hn::Store(word[1], DU(), words + kLanes);
  for (int c = 0; c < destinations.count; ++c) to[c][i] = words[destinations.lane[c]];
}

template <class Rows, bool kPartial, int kBits>
double QuantiseChunk(const EncodeState<Rows>& state, const Quantiser& quantiser,
                     const Destinations& destinations, int at, int pairs) {
  const DF d;
  VF error[2] = {hn::Zero(d), hn::Zero(d)};
  RowPointer<Rows> rows = state.rows + at;
  if constexpr (kBits == 3) {
    const int words = state.tokens / 32;
    for (int i = 0; i < words; ++i) {
      VU high[2], low[2][2];
      GatherPlanes<Rows, kPartial>(state, quantiser, i, rows, pairs, high, low, error);
      StoreWords(high, destinations, destinations.high, i);
      StoreWords(low[0], destinations, destinations.words, i);
      StoreWords(low[1], destinations, destinations.words, i + words);
    }
  } else {
    for (int i = 0; i < quantiser.words; ++i) {
      VU word[2];
      GatherWord<Rows, kPartial, kBits>(state, quantiser, i, rows, pairs, word, error);
      StoreWords(word, destinations, destinations.words, i);
    }
  }
  HWY_ALIGN float errors[kChunk];
  hn::Store(error[0], d, errors);
  hn::Store(error[1], d, errors + kLanes);
  double sum = 0;
  for (int c = 0; c < destinations.count; ++c) sum += errors[destinations.lane[c]];
  return sum;
}

// A grid for each channel of a band, in arranged arrays; 0 for other channels.
struct Grids {
  Grids(int width, ScratchArena& arena)
      : offset(arena.Take<float>(width)),
        scale(arena.Take<float>(width)),
        reciprocal(arena.Take<float>(width)) {
    for (float* array : {offset, scale, reciprocal}) std::fill_n(array, width, 0.0f);
  }

  float* offset;
  float* scale;
  float* reciprocal;
};

// The grid over [low, high] of the channel at `at`.
static void LayGrid(double low, double high, int levels, int at, Grids* grids) {
  grids->offset[at] = Bf16ToFloat(RoundDownToBf16(low));
  grids->scale[at] = Bf16ToFloat(RoundUpToBf16((high - grids->offset[at]) / levels));
  grids->reciprocal[at] = Reciprocal(grids->scale[at]);
}

// errors: sum over tokens of ((x - x^) / scale)^2 for the channels of a chunk.
template <class Rows, bool kPartial>
HWY_INLINE void MeasureGrid(const EncodeState<Rows>& state, const Grids& grids, int levels, int at,
                            int pairs, float* errors) {
  const DF d;
  VF offset[2], reciprocal[2];
  VF error[2] = {hn::Zero(d), hn::Zero(d)};
  for (int e = 0; e < 2; ++e) {
    offset[e] = hn::Load(d, grids.offset + at + e * kLanes);
    reciprocal[e] = hn::Load(d, grids.reciprocal + at + e * kLanes);
  }
  const VF last = hn::Set(d, static_cast<float>(levels));
  RowPointer<Rows> row = state.rows + at;
  for (int t = 0; t < state.tokens; ++t, row += state.stride) {
    VF x[2];
    LoadChunk<Rows, kPartial>(row, pairs, x[0], x[1]);
    for (int e = 0; e < 2; ++e) {
      const VF quotient = hn::Mul(hn::Sub(x[e], offset[e]), reciprocal[e]);
      const VF code = hn::Round(hn::Min(hn::Max(quotient, hn::Zero(d)), last));
      const VF difference = hn::Sub(quotient, code);
      error[e] = hn::MulAdd(difference, difference, error[e]);
    }
  }
  hn::Store(error[0], d, errors);
  hn::Store(error[1], d, errors + kLanes);
}

// Calls body(at, begin, end) for every chunk: its first channel, and which of the band's channels
// it has. They increase, so those of one chunk are neighbours.
template <class Body>
HWY_INLINE void ForEachChunk(const BandLayout& band, const Body& body) {
  for (int j = 0; j < band.size;) {
    const int at = band.channels[j] / kChunk * kChunk;
    const int begin = j;
    while (j < band.size && band.channels[j] < at + kChunk) ++j;
    body(at, begin, j);
  }
}

// Pairs of channels in the chunk at `at` if it is partial, else 0.
template <class Rows>
HWY_INLINE int PartialPairs(const EncodeState<Rows>& state, int at) {
  return !kStored<Rows> || at + kChunk <= state.head_dim ? 0 : (state.head_dim - at) / 2;
}

// Chooses the grids of a band's channels.
template <class Rows>
void FitGrids(const EncodeState<Rows>& state, const BandLayout& band, ScratchArena& arena,
              Grids* best) {
  const int levels = (1 << band.bits) - 1;
  const std::span<const double> trims = GridTrims(band.bits);
  const auto lay = [&](double trim, int at, Grids* grids) {
    const double low = state.low[at];
    const double high = state.high[at];
    const double cut = trim * (high - low);
    LayGrid(low + cut, high - cut, levels, at, grids);
  };
  if (trims.size() == 1) {
    for (int j = 0; j < band.size; ++j) lay(trims[0], Rows::Arranged(band.channels[j]), best);
    return;
  }
  Grids trial(state.width, arena);
  ForEachChunk(band, [&](int at, int begin, int end) {
    const int pairs = PartialPairs(state, at);
    double least[kChunk];
    std::fill_n(least, kChunk, std::numeric_limits<double>::infinity());
    for (double trim : trims) {
      for (int j = begin; j < end; ++j) lay(trim, Rows::Arranged(band.channels[j]), &trial);
      HWY_ALIGN float errors[kChunk];
      if (pairs == 0) {
        MeasureGrid<Rows, false>(state, trial, levels, at, 0, errors);
      } else {
        MeasureGrid<Rows, true>(state, trial, levels, at, pairs, errors);
      }
      for (int j = begin; j < end; ++j) {
        const int arranged = Rows::Arranged(band.channels[j]);
        const double scale = trial.scale[arranged];
        const double error = errors[arranged - at] * scale * scale;
        if (error >= least[arranged - at]) continue;
        least[arranged - at] = error;
        best->offset[arranged] = trial.offset[arranged];
        best->scale[arranged] = trial.scale[arranged];
        best->reciprocal[arranged] = trial.reciprocal[arranged];
      }
    }
  });
}

template <class Rows, int kBits>
double EncodeResident(const EncodeState<Rows>& state, const BandLayout& band, std::byte* payload,
                      ScratchArena& arena) {
  const DF d;
  Grids grids(state.width, arena);
  if constexpr (kBits != 16) {
    FitGrids(state, band, arena, &grids);
    auto* scales = reinterpret_cast<uint16_t*>(payload + band.scale_offset);
    auto* zeros = reinterpret_cast<uint16_t*>(payload + band.zero_offset);
    for (int j = 0; j < band.size; ++j) {
      const int at = Rows::Arranged(band.channels[j]);
      scales[j] = FloatToBf16(grids.scale[at]);
      zeros[j] = FloatToBf16(grids.offset[at]);
    }
  }
  constexpr int kWordBits = kBits == 3 ? 2 : kBits;
  Quantiser quantiser;
  quantiser.words = state.tokens * kWordBits / 32;
  quantiser.word_step = kBits <= 4 ? 1 : 32 / kBits;
  quantiser.token_step = kBits <= 4 ? quantiser.words : 1;
  auto* data = reinterpret_cast<uint32_t*>(payload + band.data_offset);
  auto* high = reinterpret_cast<uint32_t*>(payload + band.high_offset);
  double error = 0;
  ForEachChunk(band, [&](int at, int begin, int end) {
    Destinations destinations;
    for (int j = begin; j < end; ++j) {
      const int c = destinations.count++;
      destinations.lane[c] = static_cast<uint8_t>(Rows::Arranged(band.channels[j]) - at);
      destinations.words[c] = data + static_cast<int64_t>(j) * quantiser.words;
      destinations.high[c] = high + static_cast<int64_t>(j) * (state.tokens / 32);
    }
    for (int e = 0; e < 2; ++e) {
      quantiser.offset[e] = hn::Load(d, grids.offset + at + e * kLanes);
      quantiser.scale[e] = hn::Load(d, grids.scale + at + e * kLanes);
      quantiser.reciprocal[e] = hn::Load(d, grids.reciprocal + at + e * kLanes);
    }
    const int pairs = PartialPairs(state, at);
    if (pairs == 0) {
      error += QuantiseChunk<Rows, false, kBits>(state, quantiser, destinations, at, 0);
    } else {
      error += QuantiseChunk<Rows, true, kBits>(state, quantiser, destinations, at, pairs);
    }
  });
  return error;
}

}  // namespace HWY_NAMESPACE
}  // namespace fourierkv::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
