// Where each channel of a head stands in its bytes of a payload: the bands of a part the other way
// round.

#pragma once

#include <cstdint>

#include "kernels/segment_view.h"

namespace fourierkv::kernels::codec {

// Offsets are bytes from where the head's begin, of which there are less than 2^32.
struct ChannelPlace {
  uint32_t data;         // of its first coefficient, integer or value
  uint32_t high;         // of its upper bits; resident 3 bits only
  uint32_t scale;        // not with 16 bits
  uint32_t zero;         // of its offset; resident 2 to 8 bits only
  uint16_t stride;       // from coefficient m to m + 1, in coefficients
  uint8_t coefficients;  // 0 for resident channels
  uint8_t bits;
};

// Fills `places` for all channels of a head, or with kInOrder for all columns of a rotated head in
// the order of the bands. By the whole block; they count after a barrier.
template <bool kInOrder = false>
__device__ __forceinline__ void FindPlaces(const PartView& part, int head, ChannelPlace* places) {
  const int s = part.segment_tokens;
  const int64_t start = part.head_offsets[head];
  for (int b = part.head_bands[head]; b < part.head_bands[head + 1]; ++b) {
    const BandView& band = part.bands[b];
    for (int j = static_cast<int>(threadIdx.x); j < band.size; j += static_cast<int>(blockDim.x)) {
      ChannelPlace place;
      // Spectral: [M][n]. Resident: a plane or integers of S tokens a channel; 3 bits have planes
      // of 2 and of 1.
      const int bytes = band.coefficients > 0 ? band.bits / 8
                        : band.bits == 3      ? s / 4
                                              : s * band.bits / 8;
      place.data = static_cast<uint32_t>(band.data_offset - start) + j * bytes;
      place.high = static_cast<uint32_t>(band.high_offset - start) + j * (s / 8);
      place.scale = static_cast<uint32_t>(band.scale_offset - start) + 2 * j;
      place.zero = static_cast<uint32_t>(band.zero_offset - start) + 2 * j;
      place.stride = static_cast<uint16_t>(band.size);
      place.coefficients = static_cast<uint8_t>(band.coefficients);
      place.bits = static_cast<uint8_t>(band.bits);
      const int at = band.channels + j;
      places[kInOrder ? at - head * part.head_dim : part.channels[at]] = place;
    }
  }
}

}  // namespace fourierkv::kernels::codec
