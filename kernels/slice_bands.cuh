// The bands of one head, and which of their channels a tile has.

#pragma once

#include <cstdint>

#include "kernels/segment_view.h"

namespace fourierkv::kernels::codec {

constexpr int kMaxBands = 12;

// A band, and which of its channels are in the slice: [begin, end), of which the first is number
// `first` of the slice's channels in the order of the bands.
struct SliceBand {
  BandView view;
  int32_t begin;
  int32_t end;
  int32_t first;
};

struct SliceBands {
  SliceBand bands[kMaxBands];
  int32_t count;
  int32_t groups;     // of 8 coefficients, of the spectral band that has most
  uint32_t spectral;  // bit g: some channel of 8 g ... 8 g + 7 of the slice is spectral; g < 32
};

// The first of n increasing ids that is at least `least`.
__device__ __forceinline__ int LowerBound(const uint16_t* ids, int n, int least) {
  int low = 0;
  while (low < n) {
    const int middle = (low + n) / 2;
    if (ids[middle] < least) {
      low = middle + 1;
    } else {
      n = middle;
    }
  }
  return low;
}

// Bytes of a band's data in a segment of `tokens`.
__device__ __forceinline__ int64_t DataBytes(const BandView& band, int tokens) {
  const int values = band.coefficients > 0 ? band.coefficients : tokens;
  return static_cast<int64_t>(band.size) * values * band.bits / 8;
}

// Fills `slice` for channels [begin, end) of a head and, unless it is null, `ids` with what is to
// be added to `begin` to have these channels in the order of the bands. By one warp.
__device__ __forceinline__ void FindBands(const PartView& part, int head, int begin, int end,
                                          SliceBands* slice, uint16_t* ids) {
  const int lane = threadIdx.x % 32;
  const int first_band = part.head_bands[head];
  const int count = min(part.head_bands[head + 1] - first_band, kMaxBands);
  BandView band = {};
  int from = 0;
  int to = 0;
  if (lane < count) {
    band = part.bands[first_band + lane];
    const uint16_t* const channels = part.channels + band.channels;
    const bool whole = begin == 0 && end == part.head_dim;
    from = whole ? 0 : LowerBound(channels, band.size, begin);
    to = whole ? band.size : LowerBound(channels, band.size, end);
  }
  int groups = 0;
  int first = 0;
  uint32_t spectral = 0;
  for (int b = 0; b < count; ++b) {
    const int coefficients = __shfl_sync(0xffffffffu, band.coefficients, b);
    const int band_from = __shfl_sync(0xffffffffu, from, b);
    const int band_to = __shfl_sync(0xffffffffu, to, b);
    const uint16_t* const channels = part.channels + __shfl_sync(0xffffffffu, band.channels, b);
    if (lane == b) slice->bands[b] = {band, from, to, first};
    if (band_to > band_from) groups = max(groups, (coefficients + 7) / 8);
    for (int j = band_from + lane; j < band_to; j += 32) {
      const int id = channels[j] - begin;
      if (ids != nullptr) ids[first + j - band_from] = static_cast<uint16_t>(id);
      if (coefficients > 0 && id < 256) spectral |= 1u << (id / 8);
    }
    first += band_to - band_from;
  }
  spectral = __reduce_or_sync(0xffffffffu, spectral);
  if (lane == 0) {
    slice->count = count;
    slice->groups = groups;
    slice->spectral = spectral;
  }
}

// Zeroes what is between scales and data, and between bands, of a head. By one warp.
__device__ __forceinline__ void ZeroPadding(const PartView& part, const SliceBands& slice,
                                            uint8_t* payload) {
  const int lane = threadIdx.x % 32;
  if (lane >= slice.count) return;
  const BandView& band = slice.bands[lane].view;
  int64_t at = band.data_offset + DataBytes(band, part.segment_tokens);
  for (; at % 16 != 0; ++at) payload[at] = 0;
  if (band.bits == 16) return;
  at = (band.coefficients > 0 ? band.scale_offset : band.zero_offset) + 2 * band.size;
  for (; at < band.data_offset; ++at) payload[at] = 0;
}

// U of a head, or null if it is not rotated.
__device__ __forceinline__ const float* RotationOf(const PartView& part, int head) {
  return part.rotations == nullptr ? nullptr : part.rotations[head];
}

}  // namespace fourierkv::kernels::codec
