// Resident channels back from their bit planes: 4 of a lane's 8 tokens of a pair of channels at
// once, as bf16.

#pragma once

#include <cstdint>

#include "kernels/channel_places.cuh"
#include "kernels/codec_values.cuh"
#include "kernels/decode_basis.cuh"
#include "kernels/decode_channels.cuh"

namespace fourierkv::kernels::codec {

// All bits of the halves of which bits 0 and 1 of `which` are set.
__device__ __forceinline__ uint32_t HalfMask(uint32_t which) {
  return ((which & 1u) != 0 ? 0xffffu : 0u) | ((which & 2u) != 0 ? 0xffff0000u : 0u);
}

// A lane's tokens of a channel with 2 to 4 bits. All become a word of 4-bit integers, number k
// being that of token k S / 8 + i.
struct WordCodes {
  uint32_t word = 0;

  template <class Bytes>
  __device__ __forceinline__ void Load(const ChannelPlace& place, int tokens, int i, bool narrow,
                                       const Bytes& head) {
    const auto at = [&head](uint32_t plane, int index) { return head.Four(plane + 4 * index); };
    if (!narrow || place.bits == 4) {
      word = at(place.data, i);
      return;
    }
    const int words = tokens / 16;  // of the plane of 2 bits; S is a power of two
    word = at(place.data, i & (words - 1)) >> (i >= words ? 2 : 0) & 0x33333333u;
    if (place.bits != 3) return;
    const int upper = tokens / 32;  // words of the plane of 1 bit
    const uint32_t high = at(place.high, i & (upper - 1)) >> (i / upper);
    word |= (high & 0x11111111u) << 2;
  }

  // Tokens 4 half to 4 half + 3, the first channel's in the lower halves.
  __device__ __forceinline__ static void Unpack(const WordCodes& even, const WordCodes& odd,
                                                int half, uint32_t (&pairs)[4]) {
    constexpr uint32_t k128 = 0x43004300u;  // as bf16: what is or-ed to it is added
    constexpr uint32_t kMinus128 = 0xc300c300u;
    const uint32_t halves =
        half == 0 ? LowerHalves(even.word, odd.word) : UpperHalves(even.word, odd.word);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      pairs[k] = AddBf16((halves >> 4 * k & 0x000f000fu) | k128, kMinus128);
    }
  }
};

// 4 of a lane's tokens of a channel with 8 bits.
struct ByteCodes {
  uint32_t word = 0;

  template <class Bytes>
  __device__ __forceinline__ void Load(const ChannelPlace& place, const TokenOrder& order, int i,
                                       int half, const Bytes& head) {
    if (order.of_k == 1) {
      word = head.Four(place.data + 4 * (2 * i + half));
      return;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const auto byte = static_cast<uint8_t>(head.One(place.data + order.Token(i, 4 * half + k)));
      word |= static_cast<uint32_t>(byte) << 8 * k;
    }
  }

  __device__ __forceinline__ static void Unpack(const ByteCodes& even, const ByteCodes& odd,
                                                uint32_t (&pairs)[4]) {
    const auto value = [](uint32_t word, int byte) {
      constexpr uint32_t kTwoTo23 = 0x4b000000u;  // as a float: what is or-ed to it is added
      return __uint_as_float(__byte_perm(word, kTwoTo23, 0x7440 + byte)) -
             __uint_as_float(kTwoTo23);
    };
#pragma unroll
    for (int k = 0; k < 4; ++k) pairs[k] = PackBf16(value(even.word, k), value(odd.word, k));
  }
};

// 4 of a lane's tokens of a channel with 16 bits.
struct ValueCodes {
  uint32_t words[2] = {0, 0};

  template <class Bytes>
  __device__ __forceinline__ void Load(const ChannelPlace& place, const TokenOrder& order, int i,
                                       int half, const Bytes& head) {
    if (order.of_k == 1) {
      const uint2 four = head.Eight(place.data + 8 * (2 * i + half));
      words[0] = four.x;
      words[1] = four.y;
      return;
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint32_t value = head.Two(place.data + 2 * order.Token(i, 4 * half + k));
      words[k / 2] |= value << 16 * (k % 2);
    }
  }

  __device__ __forceinline__ static void Unpack(const ValueCodes& even, const ValueCodes& odd,
                                                uint32_t (&pairs)[4]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      pairs[k] = k % 2 == 0 ? LowerHalves(even.words[k / 2], odd.words[k / 2])
                            : UpperHalves(even.words[k / 2], odd.words[k / 2]);
    }
  }
};

// A pair of channels: base + step * code. `pair` is already base rounded to kType.
template <ElementType kType>
__device__ __forceinline__ uint32_t AddCodes(uint32_t pair, uint32_t codes, uint32_t step,
                                             float2 base, uint32_t which) {
  if constexpr (kType == ElementType::kBf16) {
    return FmaBf16(codes, step & which, pair);  // bases are exact in bf16, and steps of others 0
  } else {
    const uint32_t made = Element<kType>::Round(fmaf(LowBf16(codes), LowBf16(step), base.x),
                                                fmaf(HighBf16(codes), HighBf16(step), base.y));
    return (made & which) | (pair & ~which);
  }
}

// Adds the codes of product j's pair of the lane's channels to `out`, for 4 tokens. Bits of `kind`
// say which of the warp's 32 channels the codes are of.
template <ElementType kType>
__device__ __forceinline__ void AddPair(const uint32_t (&pairs)[4], uint32_t kind, int j,
                                        const LaneChannels& channels, uint32_t (&out)[4][4]) {
  const int mine = 8 * (static_cast<int>(threadIdx.x) % 4) + 2 * j;
  const uint32_t which = HalfMask(kind >> mine);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    out[k][j] = AddCodes<kType>(out[k][j], pairs[k], channels.step[j],
                                {channels.base[2 * j], channels.base[2 * j + 1]}, which);
  }
}

// The same from the head's bytes; `places` is of the first of the 32 channels.
template <class Codes, ElementType kType, class Bytes>
__device__ __forceinline__ void AddResidents(const ChannelPlace* places, uint32_t kind,
                                             const LaneChannels& channels, const TokenOrder& order,
                                             int i, int half, const Bytes& head,
                                             uint32_t (&out)[4][4]) {
  if (kind == 0) return;
  const int mine = 8 * (static_cast<int>(threadIdx.x) % 4);
  Codes codes[8];
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    if ((kind >> (mine + e) & 1u) != 0) codes[e].Load(places[mine + e], order, i, half, head);
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    uint32_t pairs[4];
    Codes::Unpack(codes[2 * j], codes[2 * j + 1], pairs);
    AddPair<kType>(pairs, kind, j, channels, out);
  }
}

}  // namespace fourierkv::kernels::codec
