// Encoding of one KV head of one segment.
//
// Rows are read in tiles of tokens that fit in the first-level cache, lanes running over channels:
// sums of squares, ranges and the projection on the basis. The integers of resident channels are
// made in a second pass, where one 32-bit word per lane gathers the tokens of one stored word (8, 4
// or 2 of them), so that only whole words change from token-major to channel-major order.
//
// The error of spectral channels comes from Parseval's theorem: sum x^2 - sum c^2 + sum (c - c^)^2.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "compute/backend/cpu/kernels.h"
#include "compute/base/bfloat16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compute/backend/cpu/encode_kernels.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come before the files that are compiled once per target.
#include "compute/backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fourierkv::cpu {
namespace HWY_NAMESPACE {

constexpr int kTileTokens = 64;

// Arrays over channels are arranged (simd-inl.h) and have `width` floats.
struct EncodeState {
  const PartLayout* layout;
  const HeadLayout* head;
  const uint16_t* dense;
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

template <class Rows, bool kPartial, bool kRange>
void GatherStatistics(EncodeState& state, int t0, int at, int pairs) {
  const DF d;
  const DU16 du16;
  VF energy0 = hn::Zero(d), energy1 = hn::Zero(d);
  VF low0 = hn::Load(d, state.low + at), low1 = hn::Load(d, state.low + at + kLanes);
  VF high0 = hn::Load(d, state.high + at), high1 = hn::Load(d, state.high + at + kLanes);
  auto magnitude = hn::Zero(du16);
  const auto magnitude_bits = hn::Set(du16, uint16_t{0x7fff});
  const int64_t ahead = static_cast<int64_t>(kTileTokens) * state.head_dim;
  const uint16_t* row = state.dense + static_cast<int64_t>(t0) * state.head_dim + at;
  for (int t = 0; t < kTileTokens; ++t, row += state.head_dim) {
    hwy::Prefetch(row + ahead);
    VU raw;
    if constexpr (kPartial) {
      raw = LoadRawPartial(row, pairs);
    } else {
      raw = LoadRaw(row);
    }
    magnitude = hn::Max(magnitude, hn::And(hn::BitCast(du16, raw), magnitude_bits));
    VF x0, x1;
    Rows::Split(raw, x0, x1);
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
  HWY_ALIGN uint16_t lanes[2 * kLanes];
  hn::Store(magnitude, du16, lanes);
  for (uint16_t lane : lanes) state.largest_magnitude = std::max(state.largest_magnitude, lane);
}

// projection[m0 ...][chunk] += sum over the tile's tokens of B[t][m] * x[t].
template <class Rows, bool kPartial, int MB>
HWY_INLINE void ProjectBlock(const EncodeState& state, int t0, int at, int pairs, int m0) {
  const DF d;
  const Basis& basis = *state.layout->basis;
  VF acc[MB][2];
  HWY_UNROLL(8)
  for (int m = 0; m < MB; ++m) acc[m][0] = acc[m][1] = hn::Zero(d);
  const uint16_t* row = state.dense + static_cast<int64_t>(t0) * state.head_dim + at;
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
    row += state.head_dim;
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
void Project(const EncodeState& state, int t0, int at, int pairs) {
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
void FirstPassChunk(EncodeState& state, int t0, int at, int pairs) {
  const int chunk = at / kChunk;
  if (state.has_resident[chunk]) {
    GatherStatistics<Rows, kPartial, true>(state, t0, at, pairs);
  } else {
    GatherStatistics<Rows, kPartial, false>(state, t0, at, pairs);
  }
  if (state.has_spectral[chunk]) Project<Rows, kPartial>(state, t0, at, pairs);
}

// x / y of which y's reciprocal is known, correctly rounded (but for tiny y).
static HWY_INLINE VF Divide(VF x, VF y, VF reciprocal) {
  const VF quotient = hn::Mul(x, reciprocal);
  return hn::MulAdd(hn::NegMulAdd(quotient, y, x), reciprocal, quotient);
}

// 0 for 0, so that quotients are 0 where everything is.
static float Reciprocal(float scale) {
  return scale > 0 ? std::min(1.0f / scale, std::numeric_limits<float>::max()) : 0.0f;
}

template <class Rows>
double EncodeSpectral(const EncodeState& state, const BandLayout& band, std::byte* payload,
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
      const double total = state.energy[Rows::Arranged(band.channels[x + j])];
      error += std::max(0.0, total - residual[j]) + rounding[j];
    }
  }
  return error;
}

// Directed rounding of a double; exact because every bf16 is a float.
static uint16_t RoundUpToBf16(double value) {
  float nearest = static_cast<float>(value);
  if (nearest < value) nearest = std::nextafter(nearest, std::numeric_limits<float>::infinity());
  return FloatToBf16Up(nearest);
}

// Channels of one band within one chunk.
struct Destinations {
  int count = 0;
  uint8_t lane[kChunk];     // in the chunk
  uint32_t* words[kChunk];  // the channel's first stored word
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
  const DI di;
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
  (void)di;
}

// Shifts each token's integer to its place in the word.
template <class Rows, bool kPartial, int kBits, int K = 0>
HWY_INLINE void GatherWord(const Quantiser& quantiser, const uint16_t* first, int64_t stride,
                           int pairs, VU (&word)[2], VF (&error)[2]) {
  if constexpr (K < 32 / kBits) {
    VF x[2];
    LoadChunk<Rows, kPartial>(first + K * stride, pairs, x[0], x[1]);
    HWY_UNROLL(2)
    for (int e = 0; e < 2; ++e) {
      VU q = QuantiseOne<kBits>(quantiser, e, x[e], error[e]);
      if constexpr (K > 0) q = hn::ShiftLeft<K * kBits>(q);
      word[e] = hn::Or(word[e], q);
    }
    GatherWord<Rows, kPartial, kBits, K + 1>(quantiser, first, stride, pairs, word, error);
  }
}

template <class Rows, bool kPartial, int kBits>
double QuantiseChunk(const EncodeState& state, const Quantiser& quantiser,
                     const Destinations& destinations, int at, int pairs) {
  const DF d;
  const DU du;
  VF error[2] = {hn::Zero(d), hn::Zero(d)};
  HWY_ALIGN uint32_t words[kChunk];
  const int64_t stride = static_cast<int64_t>(quantiser.token_step) * state.head_dim;
  for (int i = 0; i < quantiser.words; ++i) {
    const uint16_t* first =
        state.dense + static_cast<int64_t>(i) * quantiser.word_step * state.head_dim + at;
    VU word[2] = {hn::Zero(du), hn::Zero(du)};
    GatherWord<Rows, kPartial, kBits>(quantiser, first, stride, pairs, word, error);
    hn::Store(word[0], du, words);
    hn::Store(word[1], du, words + kLanes);
    for (int c = 0; c < destinations.count; ++c) {
      destinations.words[c][i] = words[destinations.lane[c]];
    }
  }
  HWY_ALIGN float errors[kChunk];
  hn::Store(error[0], d, errors);
  hn::Store(error[1], d, errors + kLanes);
  double sum = 0;
  for (int c = 0; c < destinations.count; ++c) sum += errors[destinations.lane[c]];
  return sum;
}

// Writes scales and offsets of the band's channels and leaves them in arranged arrays.
template <class Rows>
void FitRanges(const EncodeState& state, const BandLayout& band, std::byte* payload, float* offset,
               float* scale, float* reciprocal) {
  if (band.bits == 16) return;
  auto* scales = reinterpret_cast<uint16_t*>(payload + band.scale_offset);
  auto* zeros = reinterpret_cast<uint16_t*>(payload + band.zero_offset);
  const int levels = (1 << band.bits) - 1;
  for (int j = 0; j < band.size; ++j) {
    const int at = Rows::Arranged(band.channels[j]);
    zeros[j] = FloatToBf16Down(state.low[at]);
    offset[at] = Bf16ToFloat(zeros[j]);
    scales[j] = RoundUpToBf16((static_cast<double>(state.high[at]) - offset[at]) / levels);
    scale[at] = Bf16ToFloat(scales[j]);
    reciprocal[at] = Reciprocal(scale[at]);
  }
}

template <class Rows, int kBits>
double EncodeResident(const EncodeState& state, const BandLayout& band, std::byte* payload,
                      ScratchArena& arena) {
  const DF d;
  float* offset = arena.Take<float>(state.width);
  float* scale = arena.Take<float>(state.width);
  float* reciprocal = arena.Take<float>(state.width);
  std::fill_n(offset, state.width, 0.0f);
  std::fill_n(scale, state.width, 0.0f);
  std::fill_n(reciprocal, state.width, 0.0f);
  FitRanges<Rows>(state, band, payload, offset, scale, reciprocal);

  Quantiser quantiser;
  quantiser.words = state.tokens * kBits / 32;
  quantiser.word_step = kBits == 4 ? 1 : 32 / kBits;
  quantiser.token_step = kBits == 4 ? state.tokens / 8 : 1;
  auto* data = reinterpret_cast<uint32_t*>(payload + band.data_offset);
  double error = 0;
  int j = 0;  // channels increase, so those of one chunk are neighbours
  while (j < band.size) {
    const int at = band.channels[j] / kChunk * kChunk;
    Destinations destinations;
    for (; j < band.size && band.channels[j] < at + kChunk; ++j) {
      destinations.lane[destinations.count] =
          static_cast<uint8_t>(Rows::Arranged(band.channels[j]) - at);
      destinations.words[destinations.count++] = data + static_cast<int64_t>(j) * quantiser.words;
    }
    for (int e = 0; e < 2; ++e) {
      quantiser.offset[e] = hn::Load(d, offset + at + e * kLanes);
      quantiser.scale[e] = hn::Load(d, scale + at + e * kLanes);
      quantiser.reciprocal[e] = hn::Load(d, reciprocal + at + e * kLanes);
    }
    if (at + kChunk <= state.head_dim) {
      error += QuantiseChunk<Rows, false, kBits>(state, quantiser, destinations, at, 0);
    } else {
      error += QuantiseChunk<Rows, true, kBits>(state, quantiser, destinations, at,
                                                (state.head_dim - at) / 2);
    }
  }
  return error;
}

template <class Rows>
void FirstPass(EncodeState& state, ScratchArena& arena) {
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

  const int whole = state.head_dim / kChunk * kChunk;
  const int pairs = (state.head_dim - whole) / 2;
  for (int t0 = 0; t0 < state.tokens; t0 += kTileTokens) {
    for (int at = 0; at < whole; at += kChunk) FirstPassChunk<Rows, false>(state, t0, at, 0);
    if (pairs > 0) FirstPassChunk<Rows, true>(state, t0, whole, pairs);
  }
}

// Squares of very large or small values leave float's range; doubles do not.
static void MeasureInDouble(const EncodeState& state, KvDtype dtype, int head,
                            const std::byte* payload, ScratchArena& arena, EncodeTotals& totals) {
  const int64_t stride = (state.head_dim + 15) / 16 * 16;
  float* rows = arena.Take<float>(state.tokens * stride);
  DecodeHead(*state.layout, head, payload, rows, stride, arena);
  totals.energy = totals.error = 0;
  for (int t = 0; t < state.tokens; ++t) {
    for (int c = 0; c < state.head_dim; ++c) {
      const double x = KvToFloat(state.dense[static_cast<int64_t>(t) * state.head_dim + c], dtype);
      const double difference = x - rows[t * stride + c];
      totals.energy += x * x;
      totals.error += difference * difference;
    }
  }
}

template <class Rows>
EncodeTotals EncodeRows(const PartLayout& layout, int head, KvDtype dtype, const uint16_t* dense,
                        std::byte* payload, ScratchArena& arena) {
  EncodeState state;
  state.layout = &layout;
  state.head = &layout.heads[head];
  state.dense = dense;
  state.head_dim = layout.head_dim;
  state.tokens = layout.segment_tokens;
  state.width = RoundUpToChunk(layout.head_dim);
  state.coefficients = state.head->max_coefficients;
  FirstPass<Rows>(state, arena);

  EncodeTotals totals;
  if (state.largest_magnitude > Rows::kLargestMagnitude) {
    totals.valid = false;
    return totals;
  }
  std::memset(payload + state.head->offset, 0, state.head->bytes);  // padding
  for (int x = 0; x < state.width; ++x) totals.energy += state.energy[x];
  for (const BandLayout& band : state.head->bands) {
    if (band.spectral()) {
      totals.error += EncodeSpectral<Rows>(state, band, payload, arena);
    } else if (band.bits == 4) {
      totals.error += EncodeResident<Rows, 4>(state, band, payload, arena);
    } else if (band.bits == 8) {
      totals.error += EncodeResident<Rows, 8>(state, band, payload, arena);
    } else {
      totals.error += EncodeResident<Rows, 16>(state, band, payload, arena);
    }
  }
  const float largest = KvToFloat(state.largest_magnitude, dtype);
  if (largest > 1e15f || (largest < 1e-12f && largest > 0)) {
    MeasureInDouble(state, dtype, head, payload, arena, totals);
  }
  return totals;
}

EncodeTotals EncodeHead(const PartLayout& layout, int head, KvDtype dtype, const uint16_t* dense,
                        std::byte* payload, ScratchArena& arena) {
  return dtype == KvDtype::kBf16 ? EncodeRows<Bf16Rows>(layout, head, dtype, dense, payload, arena)
                                 : EncodeRows<Fp16Rows>(layout, head, dtype, dense, payload, arena);
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
