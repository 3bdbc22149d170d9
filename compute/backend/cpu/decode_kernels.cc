// Decoding of one KV head of one segment to float rows, and conversions of rows.

#include <algorithm>

#include "compute/backend/cpu/kernels.h"
#include "compute/base/bfloat16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compute/backend/cpu/decode_kernels.cc"
#include <hwy/foreach_target.h>
// foreach_target.h must come before the files that are compiled once per target.
#include "compute/backend/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace fourierkv::cpu {
namespace HWY_NAMESPACE {

// Coefficients as floats at their channels: [M][stride], 0 for channels that have none.
static float* ExpandCoefficients(const HeadLayout& head, const std::byte* payload, int64_t stride,
                                 ScratchArena& arena) {
  float* all = arena.Take<float>(head.max_coefficients * stride);
  std::fill_n(all, head.max_coefficients * stride, 0.0f);
  for (const BandLayout& band : head.bands) {
    if (!band.spectral()) continue;
    const auto* scales = reinterpret_cast<const uint16_t*>(payload + band.scale_offset);
    const auto* integers = reinterpret_cast<const int8_t*>(payload + band.data_offset);
    const auto* values = reinterpret_cast<const uint16_t*>(payload + band.data_offset);
    for (int m = 0; m < band.coefficients; ++m) {
      for (int j = 0; j < band.size; ++j) {
        const int64_t at = static_cast<int64_t>(m) * band.size + j;
        all[m * stride + band.channels[j]] =
            band.scaled() ? Bf16ToFloat(scales[j]) * static_cast<float>(integers[at])
                          : Bf16ToFloat(values[at]);
      }
    }
  }
  return all;
}

// XT vectors of TT rows of B C.
template <int TT, int XT>
HWY_INLINE void SynthesizeTile(const float* factors, int columns, const float* coefficients,
                               int count, int64_t stride, float* out) {
  const DF d;
  VF acc[TT][XT];
  HWY_UNROLL(4)
  for (int t = 0; t < TT; ++t) {
    HWY_UNROLL(2)
    for (int x = 0; x < XT; ++x) acc[t][x] = hn::Zero(d);
  }
  for (int m = 0; m < count; ++m) {
    VF c[XT];
    HWY_UNROLL(2)
    for (int x = 0; x < XT; ++x) c[x] = hn::Load(d, coefficients + m * stride + x * kLanes);
    HWY_UNROLL(4)
    for (int t = 0; t < TT; ++t) {
      const VF factor = hn::Set(d, factors[t * columns + m]);
      HWY_UNROLL(2)
      for (int x = 0; x < XT; ++x) acc[t][x] = hn::MulAdd(factor, c[x], acc[t][x]);
    }
  }
  HWY_UNROLL(4)
  for (int t = 0; t < TT; ++t) {
    HWY_UNROLL(2)
    for (int x = 0; x < XT; ++x) hn::StoreU(acc[t][x], d, out + t * stride + x * kLanes);
  }
}

// Every channel of every row, resident ones as 0.
static void Synthesize(const PartLayout& layout, const HeadLayout& head, const std::byte* payload,
                       float* rows, int64_t stride, ScratchArena& arena) {
  const float* coefficients = ExpandCoefficients(head, payload, stride, arena);
  const Basis& basis = *layout.basis;
  const int width = RoundUpToLanes(layout.head_dim);
  for (int t = 0; t < layout.segment_tokens; t += 4) {
    float* out = rows + t * stride;
    int x = 0;
    for (; x + 2 * kLanes <= width; x += 2 * kLanes) {
      SynthesizeTile<4, 2>(basis.row(t), basis.columns(), coefficients + x, head.max_coefficients,
                           stride, out + x);
    }
    if (x < width) {
      SynthesizeTile<4, 1>(basis.row(t), basis.columns(), coefficients + x, head.max_coefficients,
                           stride, out + x);
    }
  }
}

template <int kBits>
HWY_INLINE VF ValueOfWord(VU word, VF scale, VF offset) {
  if constexpr (kBits == 16) {
    return hn::BitCast(DF(), hn::ShiftLeft<16>(word));
  } else {
    const VU n = hn::And(word, hn::Set(DU(), (1u << kBits) - 1));
    return hn::MulAdd(scale, hn::ConvertTo(DF(), hn::BitCast(DI(), n)), offset);
  }
}

// Up to kLanes channels of a band, at lanes: a gather reads one stored word of each.
struct ChannelLanes {
  ChannelLanes(const BandLayout& band, const std::byte* payload, int first)
      : first_channel(first),
        count(std::min(kLanes, band.size - first)),
        channels(band.channels + first),
        adjacent(count == kLanes && channels[kLanes - 1] - channels[0] == kLanes - 1) {
    scale = offset = hn::Zero(DF());
    if (!band.scaled()) return;
    const auto* scales = reinterpret_cast<const uint16_t*>(payload + band.scale_offset);
    const auto* zeros = reinterpret_cast<const uint16_t*>(payload + band.zero_offset);
    scale = LoadBf16UpTo(scales + first, count);
    offset = LoadBf16UpTo(zeros + first, count);
  }

  // Indices of each channel's first word, of `words`. Lanes beyond the last repeat it.
  VI Indices(int words) const {
    HWY_ALIGN int32_t index[kLanes];
    for (int l = 0; l < kLanes; ++l) index[l] = (first_channel + std::min(l, count - 1)) * words;
    return hn::Load(DI(), index);
  }

  HWY_INLINE void Store(VF value, float* row) const {
    if (adjacent) {
      hn::StoreU(value, DF(), row + channels[0]);
      return;
    }
    HWY_ALIGN float buffer[kLanes];
    hn::Store(value, DF(), buffer);
    for (int l = 0; l < count; ++l) row[channels[l]] = buffer[l];
  }

  int first_channel;
  int count;
  const uint16_t* channels;
  bool adjacent;
  VF scale;
  VF offset;
};

template <int kBits>
void DecodeResident(const BandLayout& band, const std::byte* payload, int tokens, float* rows,
                    int64_t stride) {
  constexpr int kPerWord = 32 / kBits;
  const int words = tokens / kPerWord;
  const int word_step = kBits <= 4 ? 1 : kPerWord;
  const int token_step = kBits <= 4 ? words : 1;
  const auto* data = reinterpret_cast<const uint32_t*>(payload + band.data_offset);
  for (int j = 0; j < band.size; j += kLanes) {
    const ChannelLanes lanes(band, payload, j);
    const VI indices = lanes.Indices(words);
    for (int i = 0; i < words; ++i) {
      VU word = hn::GatherIndex(DU(), data + i, indices);
      float* out = rows + static_cast<int64_t>(i) * word_step * stride;
      for (int k = 0; k < kPerWord; ++k, out += token_step * stride) {
        lanes.Store(ValueOfWord<kBits>(word, lanes.scale, lanes.offset), out);
        word = hn::ShiftRight<kBits>(word);
      }
    }
  }
}

// 3 bits: word i of the upper plane and words i and i + S / 32 of the lower hold the same tokens.
static void DecodePlanes(const BandLayout& band, const std::byte* payload, int tokens, float* rows,
                         int64_t stride) {
  const DU d;
  const int words = tokens / 32;
  const auto* low_plane = reinterpret_cast<const uint32_t*>(payload + band.data_offset);
  const auto* high_plane = reinterpret_cast<const uint32_t*>(payload + band.high_offset);
  for (int j = 0; j < band.size; j += kLanes) {
    const ChannelLanes lanes(band, payload, j);
    const VI low_indices = lanes.Indices(2 * words);
    const VI high_indices = lanes.Indices(words);
    for (int i = 0; i < words; ++i) {
      VU high = hn::GatherIndex(d, high_plane + i, high_indices);
      VU low[2] = {hn::GatherIndex(d, low_plane + i, low_indices),
                   hn::GatherIndex(d, low_plane + i + words, low_indices)};
      float* out = rows + i * stride;
      for (int k = 0; k < 16; ++k) {
        for (int half = 0; half < 2; ++half, out += words * stride) {
          const VU upper = hn::ShiftLeft<2>(hn::And(high, hn::Set(d, 1u)));
          const VU code = hn::Or(upper, hn::And(low[half], hn::Set(d, 3u)));
          lanes.Store(ValueOfWord<3>(code, lanes.scale, lanes.offset), out);
          high = hn::ShiftRight<1>(high);
          low[half] = hn::ShiftRight<2>(low[half]);
        }
      }
    }
  }
}

void DecodeHead(const PartLayout& layout, int head, const std::byte* payload, float* rows,
                int64_t stride, ScratchArena& arena) {
  const HeadLayout& head_layout = layout.heads[head];
  if (head_layout.max_coefficients > 0) {
    Synthesize(layout, head_layout, payload, rows, stride, arena);
  }
  for (const BandLayout& band : head_layout.bands) {
    if (band.spectral()) continue;
    switch (band.bits) {
      case 2:
        DecodeResident<2>(band, payload, layout.segment_tokens, rows, stride);
        break;
      case 3:
        DecodePlanes(band, payload, layout.segment_tokens, rows, stride);
        break;
      case 4:
        DecodeResident<4>(band, payload, layout.segment_tokens, rows, stride);
        break;
      case 8:
        DecodeResident<8>(band, payload, layout.segment_tokens, rows, stride);
        break;
      default:
        DecodeResident<16>(band, payload, layout.segment_tokens, rows, stride);
    }
  }
}

static HWY_INLINE void StoreKv(VF value, KvDtype dtype, uint16_t* to) {
  const DF d;
  if (dtype == KvDtype::kBf16) {
    const hn::Rebind<uint16_t, DI> d16;
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(DI(), RoundToBf16Bits(value))), d16, to);
    return;
  }
  const VF limit = hn::Set(d, 65504.0f);
  const VF clamped = hn::Min(hn::Max(value, hn::Neg(limit)), limit);
#if HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_EMU128
  // No conversion in hardware, and the stand-in of Highway truncates.
  HWY_ALIGN float lanes[kLanes];
  hn::Store(clamped, d, lanes);
  for (int l = 0; l < kLanes; ++l) to[l] = FloatToFp16(lanes[l]);
#else
  const hn::Rebind<hwy::float16_t, DF> fp16;
  const hn::Rebind<uint16_t, DF> d16;
  hn::StoreU(hn::BitCast(d16, hn::DemoteTo(fp16, clamped)), d16, to);
#endif
}

static HWY_INLINE VF LoadKv(const uint16_t* from, KvDtype dtype) {
  if (dtype == KvDtype::kBf16) return LoadBf16(from);
  const hn::Rebind<hwy::float16_t, DF> fp16;
  const hn::Rebind<uint16_t, DF> d16;
  return hn::PromoteTo(DF(), hn::BitCast(fp16, hn::LoadU(d16, from)));
}

void FloatsToKv(const float* from, int64_t n, KvDtype dtype, uint16_t* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) StoreKv(hn::LoadU(DF(), from + i), dtype, to + i);
  if (i == n) return;
  HWY_ALIGN float in[kLanes] = {};
  HWY_ALIGN uint16_t out[kLanes];
  std::copy_n(from + i, n - i, in);
  StoreKv(hn::Load(DF(), in), dtype, out);
  std::copy_n(out, n - i, to + i);
}

void KvToFloats(const uint16_t* from, int64_t n, KvDtype dtype, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) hn::StoreU(LoadKv(from + i, dtype), DF(), to + i);
  if (i == n) return;
  HWY_ALIGN uint16_t in[kLanes] = {};
  HWY_ALIGN float out[kLanes];
  std::copy_n(from + i, n - i, in);
  hn::Store(LoadKv(in, dtype), DF(), out);
  std::copy_n(out, n - i, to + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace fourierkv::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace fourierkv::cpu {

HWY_EXPORT(DecodeHead);
HWY_EXPORT(FloatsToKv);
HWY_EXPORT(KvToFloats);

void DecodeHead(const PartLayout& layout, int head, const std::byte* payload, float* rows,
                int64_t stride, ScratchArena& arena) {
  HWY_DYNAMIC_DISPATCH(DecodeHead)(layout, head, payload, rows, stride, arena);
}

void FloatsToKv(const float* from, int64_t n, KvDtype dtype, uint16_t* to) {
  HWY_DYNAMIC_DISPATCH(FloatsToKv)(from, n, dtype, to);
}

void KvToFloats(const uint16_t* from, int64_t n, KvDtype dtype, float* to) {
  HWY_DYNAMIC_DISPATCH(KvToFloats)(from, n, dtype, to);
}

}  // namespace fourierkv::cpu
#endif  // HWY_ONCE
