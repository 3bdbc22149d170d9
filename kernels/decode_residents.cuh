// Resident channels back from their bit planes. Lanes share a channel as in encoding.

#pragma once

#include <cstdint>

#include "kernels/segment_tile.cuh"

namespace fourierkv::kernels::codec {

// Integers, or bf16 values, of a lane's 32 tokens of channel j.
template <int kBits>
class ResidentCodes {
 public:
  __device__ __forceinline__ ResidentCodes(const BandView& band, int j, int lane, int lanes,
                                           const uint8_t* payload) {
    const uint8_t* const data = payload + band.data_offset;
    if constexpr (kBits == 16) {
      const auto* from = reinterpret_cast<const uint2*>(data) + static_cast<int64_t>(j) * 8 * lanes;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint2 pairs = __ldg(from + i * lanes + lane);
        words_[2 * i] = pairs.x;
        words_[2 * i + 1] = pairs.y;
      }
    } else {
      const auto* from =
          reinterpret_cast<const uint32_t*>(data) + static_cast<int64_t>(j) * kWords * lanes;
#pragma unroll
      for (int e = 0; e < kWords; ++e) words_[e] = __ldg(from + e * lanes + lane);
      if constexpr (kBits == 3) {
        const auto* above = reinterpret_cast<const uint32_t*>(payload + band.high_offset);
        high_ = __ldg(above + static_cast<int64_t>(j) * lanes + lane);
      }
    }
  }

  // Of the token TokenOf<kBits>(v, ...); v is a constant where loops are unrolled.
  __device__ __forceinline__ float Value(int v) const {
    if constexpr (kBits == 16) {
      return v % 2 == 0 ? LowBf16(words_[v / 2]) : HighBf16(words_[v / 2]);
    }
    constexpr uint32_t kTwoTo23 = 0x4b000000u;  // as a float: what is or-ed to it is added
    uint32_t code;
    if constexpr (kBits == 8) {
      code = words_[v / 4] >> 8 * (v % 4) & 0xffu;
    } else if constexpr (kBits == 3) {
      code = (words_[v % 2] >> 2 * (v / 2) & 3u) | (high_ >> v & 1u) << 2;
    } else {
      code = words_[v % kWords] >> kBits * (v / kWords) & ((1u << kBits) - 1);
    }
    return __uint_as_float(kTwoTo23 | code) - __uint_as_float(kTwoTo23);
  }

 private:
  static constexpr int kWords = kBits == 3 ? 2 : kBits;  // 16 bits: 16 pairs
  uint32_t words_[kWords];
  uint32_t high_ = 0;
};

// What integers of channel j mean; 0 and 1 for bf16 values.
struct Dequantiser {
  float offset = 0;
  float scale = 1;

  Dequantiser() = default;
  __device__ __forceinline__ Dequantiser(const BandView& band, int j, const uint8_t* payload) {
    if (band.bits == 16) return;
    offset = Bf16ToFloat(__ldg(reinterpret_cast<const uint16_t*>(payload + band.zero_offset) + j));
    scale = Bf16ToFloat(__ldg(reinterpret_cast<const uint16_t*>(payload + band.scale_offset) + j));
  }
};

// Channel j of a band to a tile; `channel` is its place at token 0.
template <ElementType kType, int kBits, class Shape>
__device__ __forceinline__ void DecodeResident(const Shape& shape, const BandView& band, int j,
                                               int lane, const uint8_t* payload, uint8_t* channel) {
  const ResidentCodes<kBits> codes(band, j, lane, shape.lanes(), payload);
  const Dequantiser grid(band, j, payload);
  const LaneRows<kBits, Shape> rows(shape, lane);
#pragma unroll
  for (int v = 0; v < 32; ++v) {
    const float value =
        kBits == 16 ? codes.Value(v) : fmaf(codes.Value(v), grid.scale, grid.offset);
    *reinterpret_cast<uint16_t*>(channel + rows.Row(v)) =
        static_cast<uint16_t>(Element<kType>::Round(value, value));
  }
}

// DecodeResident with the band's bits.
template <ElementType kType, class Shape>
__device__ __forceinline__ void DecodeResidentOfBand(const Shape& shape, const BandView& band,
                                                     int j, int lane, const uint8_t* payload,
                                                     uint8_t* channel) {
  switch (band.bits) {
    case 2:
      return DecodeResident<kType, 2>(shape, band, j, lane, payload, channel);
    case 3:
      return DecodeResident<kType, 3>(shape, band, j, lane, payload, channel);
    case 4:
      return DecodeResident<kType, 4>(shape, band, j, lane, payload, channel);
    case 8:
      return DecodeResident<kType, 8>(shape, band, j, lane, payload, channel);
    default:
      return DecodeResident<kType, 16>(shape, band, j, lane, payload, channel);
  }
}

}  // namespace fourierkv::kernels::codec
