// Shared by the two halves of the compact attention kernel: where a head's channels stand, what is
// kept over the segments of a run, and the formats of resident channels. Compiled once per
// instruction set.

#if defined(FOURIERKV_COMPACT_RUN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FOURIERKV_COMPACT_RUN_INL_H_
#undef FOURIERKV_COMPACT_RUN_INL_H_
#else
#define FOURIERKV_COMPACT_RUN_INL_H_
#endif

#include "compute/backend/cpu/kernels.h"
#include "compute/backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fourierkv::cpu {
namespace HWY_NAMESPACE {

// Arrays over the tokens of a segment hold them in *vector order*: vector 8 i + K of kLanes floats
// has tokens K * S/8 + i * kLanes and up. It is the order in which words of 4-bit integers unpack,
// and makes every address in the inner loops a constant away from one pointer. Weights (and scores
// before them) are [S / kLanes][GT][kLanes] for the GT query heads in hand.

// Query heads handled at once, which share the unpacking of integers.
constexpr int kMaxGroupTile = 4;
// Floats between the coefficient rows of two query heads: the largest M of a profile.
constexpr int kCoefficientStride = 64;

// Where a head's channels stand in arrays over channels: bands in order, each padded to whole
// vectors.
struct ChannelPlan {
  ChannelPlan(const PartLayout& part, int head_index, ScratchArena& arena)
      : layout(part),
        head(part.heads[head_index]),
        bands(static_cast<int>(head.bands.size())),
        start(arena.Take<int>(bands + 1)),
        tokens(part.segment_tokens) {
    for (int b = 0; b < bands; ++b) {
      start[b] = size;
      size += RoundUpToLanes(head.bands[b].size);
      if (head.bands[b].spectral()) resident_start = size;
    }
  }

  const PartLayout& layout;
  const HeadLayout& head;
  int bands;
  int* start;              // of each band
  int tokens;              // S
  int size = 0;            // of an array over channels
  int resident_start = 0;  // where the spectral bands end
};

// What a run keeps from segment to segment, and scratch of one segment and tile of query heads.
struct RunState {
  int group = 0;
  float* q = nullptr;       // [group][k.size], 0 in the padding
  float* max = nullptr;     // [group]
  float* sum = nullptr;     // [group]
  float* linear = nullptr;  // [group][v.size]: spectral channels, and the residents' offset terms
  float* lanes =
      nullptr;  // [v.size - v.resident_start][group][kLanes]: residents, lanes not yet summed

  const float* k_basis = nullptr;  // [M][S] in vector order
  const float* v_basis = nullptr;
  float* k_scale = nullptr;  // [k.size]; offsets are 0 for spectral channels
  float* k_offset = nullptr;
  float* v_scale = nullptr;  // [v.size]
  float* v_offset = nullptr;
  float* scaled_q = nullptr;      // [kMaxGroupTile][k.size]
  float* weights = nullptr;       // [S / kLanes][GT][kLanes]: scores, then weights
  float* coefficients = nullptr;  // [kMaxGroupTile][kCoefficientStride]: a, then b
};

// The coefficient formats: kLanes values as floats; the UpTo form reads only `count` of them.
struct Int8Coefficients {
  using Stored = int8_t;
  static HWY_INLINE VF Load(const int8_t* from) { return LoadInt8(from); }
  static HWY_INLINE VF LoadUpTo(const int8_t* from, int64_t count) {
    return LoadInt8UpTo(from, count);
  }
};

struct Bf16Coefficients {
  using Stored = uint16_t;
  static HWY_INLINE VF Load(const uint16_t* from) { return LoadBf16(from); }
  static HWY_INLINE VF LoadUpTo(const uint16_t* from, int64_t count) {
    return LoadBf16UpTo(from, count);
  }
};

// The resident formats. Tokens come as S / (8 * kLanes) steps of 8 vectors: vector K of step i
// holds tokens K * S/8 + i * kLanes and up. `eighth` is S/8. The stored value is scale * Value +
// offset as ExpandScales gives them.
struct RowPointers {
  const uint8_t* data;
  const uint8_t* high;  // 3 bits only
};

// Words of 8 nibbles, of which nibble K belongs to vector K.
struct NibbleFormat {
  static constexpr int kRowBits = 4;  // of data
  static constexpr int kHighBits = 0;
  static HWY_INLINE VU Begin(RowPointers row, int i, int) {
    return hn::LoadU(DU(), reinterpret_cast<const uint32_t*>(row.data) + i * kLanes);
  }
  // 1 + n / 16: the nibble is moved to the top of a float's mantissa, which spares the conversion.
  template <int K>
  static HWY_INLINE VF Value(VU words, RowPointers, int, int) {
    const DU d;
    VU moved;
    if constexpr (4 * K <= 19) {
      moved = hn::ShiftLeft<19 - 4 * K>(words);
    } else {
      moved = hn::ShiftRight<4 * K - 19>(words);
    }
    return hn::BitCast(DF(), hn::OrAnd(hn::Set(d, 0x3f800000u), moved, hn::Set(d, 0x00780000u)));
  }
};

// Words of a plane with kBits (1 or 2) per token, of which S * kBits / 32 = `count` hold a channel,
// so that the token in bits kBits * k of word x is k * count + x. Shifted so that bits 4 K of lane
// l belong to token K * S/8 + i * kLanes + l; what stands beside them is other tokens'. A stretch
// of S/8 tokens is 4 / kBits times as long as the plane has words.
template <int kBits>
HWY_INLINE VU AlignPlane(const uint8_t* plane, int i, int count) {
  const DU d;
  const auto* words = reinterpret_cast<const uint32_t*>(plane);
  const int first = i * kLanes;
  if (count >= kLanes) {
    int stretch = (first >= count) + (first >= 2 * count) + (first >= 3 * count);
    return hn::ShiftRightSame(hn::LoadU(d, words + first - stretch * count), kBits * stretch);
  }
  // A vector spans several stretches: its lanes repeat the words, shifted by as many more places.
  if constexpr (kLanes > 4) {
    const VU lane = hn::Iota(d, 0);
    if (count == 4) {
      const VU stretch = hn::Add(hn::ShiftRight<2>(lane), hn::Set(d, first / 4));
      return hn::Shr(hn::LoadDup128(d, words), hn::Mul(stretch, hn::Set(d, kBits)));
    }
    if constexpr (kLanes > 8) {
      const hn::Half<DU> half;
      const auto eight = hn::LoadU(half, words);
      const VU stretch = hn::Add(hn::ShiftRight<3>(lane), hn::Set(d, first / 8));
      return hn::Shr(hn::Combine(d, eight, eight), hn::Mul(stretch, hn::Set(d, kBits)));
    }
  }
  return hn::Zero(d);  // not reached: count is at least 4, and 8 where it is not 4
}

// Brought into nibbles when a step begins.
struct TwoBitFormat : NibbleFormat {
  static constexpr int kRowBits = 2;
  static HWY_INLINE VU Begin(RowPointers row, int i, int eighth) {
    return hn::And(AlignPlane<2>(row.data, i, eighth / 2), hn::Set(DU(), 0x33333333u));
  }
};

struct ThreeBitFormat : NibbleFormat {
  static constexpr int kRowBits = 2;
  static constexpr int kHighBits = 1;
  static HWY_INLINE VU Begin(RowPointers row, int i, int eighth) {
    const VU high = hn::And(AlignPlane<1>(row.high, i, eighth / 4), hn::Set(DU(), 0x11111111u));
    return hn::OrAnd(hn::ShiftLeft<2>(high), AlignPlane<2>(row.data, i, eighth / 2),
                     hn::Set(DU(), 0x33333333u));
  }
};

struct ByteFormat {
  static constexpr int kRowBits = 8;
  static constexpr int kHighBits = 0;
  static HWY_INLINE VU Begin(RowPointers, int, int) { return hn::Zero(DU()); }
  template <int K>
  static HWY_INLINE VF Value(VU, RowPointers row, int i, int eighth) {
    const hn::Rebind<uint8_t, DI> d8;
    return hn::ConvertTo(DF(),
                         hn::PromoteTo(DI(), hn::LoadU(d8, row.data + K * eighth + i * kLanes)));
  }
};

struct Bf16Format {
  static constexpr int kRowBits = 16;
  static constexpr int kHighBits = 0;
  static HWY_INLINE VU Begin(RowPointers, int, int) { return hn::Zero(DU()); }
  template <int K>
  static HWY_INLINE VF Value(VU, RowPointers row, int i, int eighth) {
    return LoadBf16(reinterpret_cast<const uint16_t*>(row.data) + K * eighth + i * kLanes);
  }
};

// Calls body(format, b) for every resident band b.
template <class Body>
HWY_INLINE void ForEachResident(const ChannelPlan& plan, const Body& body) {
  for (int b = 0; b < plan.bands; ++b) {
    const BandLayout& band = plan.head.bands[b];
    if (band.spectral()) continue;
    if (band.bits == 4) {
      body(NibbleFormat(), b);
    } else if (band.bits == 2) {
      body(TwoBitFormat(), b);
    } else if (band.bits == 3) {
      body(ThreeBitFormat(), b);
    } else if (band.bits == 8) {
      body(ByteFormat(), b);
    } else {
      body(Bf16Format(), b);
    }
  }
}

// The first `columns` columns in vector order.
static const float* ReorderBasis(const Basis& basis, int columns, ScratchArena& arena) {
  const DF d;
  const int tokens = basis.segment_tokens();
  float* to = arena.Take<float>(static_cast<int64_t>(columns) * tokens);
  float* out = to;
  for (int m = 0; m < columns; ++m) {
    for (int i = 0; i < tokens / 8; i += kLanes) {
      for (int k = 0; k < 8; ++k, out += kLanes) {
        hn::Store(hn::LoadU(d, basis.column(m) + k * (tokens / 8) + i), d, out);
      }
    }
  }
  return to;
}

// Scales and offsets of a segment's channels as floats, adjusted to the formats above.
static void ExpandScales(const ChannelPlan& plan, const std::byte* payload, float* scale,
                         float* offset) {
  const DF d;
  for (int b = 0; b < plan.bands; ++b) {
    const BandLayout& band = plan.head.bands[b];
    const auto* scales = reinterpret_cast<const uint16_t*>(payload + band.scale_offset);
    const auto* zeros = reinterpret_cast<const uint16_t*>(payload + band.zero_offset);
    for (int x = 0; x < band.size; x += kLanes) {
      VF s = hn::Set(d, 1.0f);
      VF o = hn::Zero(d);
      if (band.scaled()) s = LoadBf16UpTo(scales + x, band.size - x);
      if (band.offset()) o = LoadBf16UpTo(zeros + x, band.size - x);
      if (!band.spectral() && band.bits <= 4) {
        s = hn::Mul(s, hn::Set(d, 16.0f));
        o = hn::Sub(o, s);
      }
      hn::Store(s, d, scale + plan.start[b] + x);
      hn::Store(o, d, offset + plan.start[b] + x);
    }
  }
}

// Rows are read in order; asking for the next segment's row meanwhile hides memory latency, which
// the hardware cannot do because segments are separate allocations. `next` may be null.
static HWY_INLINE void PrefetchRow(const uint8_t* next, int64_t at, int64_t bytes) {
  if (next == nullptr) return;
  for (int64_t i = 0; i < bytes; i += 64) hwy::Prefetch(next + at + i);
}

static HWY_INLINE void PrefetchSpectral(const BandLayout& band, const std::byte* next) {
  const int64_t begin = band.scaled() ? band.scale_offset : band.data_offset;
  const int64_t bits = int64_t{band.bits} * band.coefficients + (band.scaled() ? 16 : 0);
  PrefetchRow(reinterpret_cast<const uint8_t*>(next), begin, bits * band.size / 8);
}

// Where the values of channel j of a band stand.
template <class Format>
HWY_INLINE RowPointers ResidentRow(const BandLayout& band, const uint8_t* payload, int64_t j,
                                   int eighth) {
  RowPointers row = {payload + band.data_offset + j * eighth * Format::kRowBits, nullptr};
  if constexpr (Format::kHighBits > 0) {
    row.high = payload + band.high_offset + j * eighth * Format::kHighBits;
  }
  return row;
}

template <class Format>
HWY_INLINE void PrefetchResident(const BandLayout& band, const std::byte* next, int64_t j,
                                 int eighth) {
  const auto* base = reinterpret_cast<const uint8_t*>(next);
  const int64_t bytes = int64_t{eighth} * Format::kRowBits;
  PrefetchRow(base, band.data_offset + j * bytes, bytes);
  if constexpr (Format::kHighBits > 0) {
    const int64_t high_bytes = int64_t{eighth} * Format::kHighBits;
    PrefetchRow(base, band.high_offset + j * high_bytes, high_bytes);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace fourierkv::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
