// What a warp that decodes 32 neighbouring channels of a head has to know of them, in shared
// memory: all integers and offsets become multiply-adds after the products with the basis.

#pragma once

#include <cstdint>

#include "kernels/channel_places.cuh"
#include "kernels/codec_values.cuh"

namespace fourierkv::kernels::codec {

// Lane (r, c) = 4 r + c decodes channels 8 c to 8 c + 7: number n of the 8 columns of product j of
// 4 is channel 8 (n / 2) + 2 j + n % 2, since a lane gets columns 2 c and 2 c + 1.
struct DecodedChannels {
  // A spectral channel is factor * (sum of products) + base; there is no sum for resident ones, so
  // they are base + step * integer, or just the value with step 1.
  float factor[32];
  float base[32];
  uint16_t step[32];      // bf16
  uint4 coefficients[1];  // [groups][32]: 8 of bf16, integers or as they are; number 8 j + n first

  // Which of the 32 column n of product j is.
  __device__ static __forceinline__ constexpr int Channel(int j, int n) {
    return n / 2 * 8 + 2 * j + n % 2;
  }
  static constexpr int Bytes(int groups) {
    return static_cast<int>(sizeof(DecodedChannels)) + (32 * groups - 1) * 16;
  }
};

// Which of the 32 channels are what, the same in all lanes.
struct ChannelKinds {
  uint32_t spectral;
  uint32_t words;   // resident 2, 3 and 4 bits
  uint32_t bytes;   // resident 8 bits
  uint32_t values;  // resident 16 bits
  bool narrow;      // some have 2 or 3 bits
  int groups;       // of 8 coefficients, of the channel that has most
};

// Looks up the first 32 channels of `places`, of which `count` exist, by one warp, which sees them
// when it returns. Stored coefficients are `unit` times those of the table's columns. `head` are
// the bytes of the head.
template <class Bytes>
__device__ __forceinline__ ChannelKinds LoadChannels(const ChannelPlace* places, int count,
                                                     float unit, const Bytes& head,
                                                     DecodedChannels* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool exists = lane < count;
  ChannelPlace place = {};
  if (exists) place = places[lane];
  const bool spectral = place.coefficients > 0;
  const uint16_t scale = exists && place.bits != 16 ? head.Two(place.scale) : 0;
  uint16_t step = 0;
  float factor = 0;
  float base = 0;
  if (spectral) {
    factor = place.bits == 16 ? unit : Bf16ToFloat(scale) * unit;
  } else if (place.bits == 16) {
    step = FloatToBf16(1.0f);
    factor = -1.0f;  // zero sums give -0, to which any value may be added without a change
    base = -0.0f;
  } else if (exists) {
    step = scale;
    base = Bf16ToFloat(head.Two(place.zero));
  }
  ChannelKinds kinds;
  kinds.spectral = __ballot_sync(0xffffffffu, spectral);
  kinds.words = __ballot_sync(0xffffffffu, exists && !spectral && place.bits <= 4);
  kinds.bytes = __ballot_sync(0xffffffffu, exists && !spectral && place.bits == 8);
  kinds.values = __ballot_sync(0xffffffffu, exists && !spectral && place.bits == 16);
  kinds.narrow = __any_sync(0xffffffffu, exists && !spectral && place.bits < 4) != 0;
  kinds.groups = static_cast<int>(__reduce_max_sync(0xffffffffu, place.coefficients) + 7u) / 8;

  __syncwarp();  // nobody needs what was there
  to->factor[lane] = factor;
  to->base[lane] = base;
  to->step[lane] = step;
  const int number = lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2;
  for (int g = 0; g < kinds.groups; ++g) {
    uint32_t c[8] = {};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int m = 8 * g + e;
      if (m >= place.coefficients) continue;
      if (place.bits == 16) {
        c[e] = head.Two(place.data + 2u * m * place.stride);
      } else {
        c[e] = FloatToBf16(static_cast<float>(head.One(place.data + m * place.stride)));
      }
    }
    to->coefficients[32 * g + number] = {c[0] | c[1] << 16, c[2] | c[3] << 16, c[4] | c[5] << 16,
                                         c[6] | c[7] << 16};
  }
  __syncwarp();
  return kinds;
}

// What lane (r, c) needs of its 8 channels all the time.
struct LaneChannels {
  float factor[8];
  float base[8];
  uint32_t step[4];  // pairs of bf16

  __device__ __forceinline__ explicit LaneChannels(const DecodedChannels& from) {
    const int first = 8 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
    for (int e = 0; e < 8; e += 4) {
      const float4 factors = *reinterpret_cast<const float4*>(from.factor + first + e);
      const float4 bases = *reinterpret_cast<const float4*>(from.base + first + e);
      factor[e] = factors.x;
      factor[e + 1] = factors.y;
      factor[e + 2] = factors.z;
      factor[e + 3] = factors.w;
      base[e] = bases.x;
      base[e + 1] = bases.y;
      base[e + 2] = bases.z;
      base[e + 3] = bases.w;
    }
    const uint4 steps = *reinterpret_cast<const uint4*>(from.step + first);
    step[0] = steps.x;
    step[1] = steps.y;
    step[2] = steps.z;
    step[3] = steps.w;
  }
};

}  // namespace fourierkv::kernels::codec
