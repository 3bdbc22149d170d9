// The bands of one head, and which of their channels a tile has.

#pragma once

#include <cstdint>

#include "kernels/segment_view.h"

namespace fourierkv::kernels::codec {

constexpr int kMaxBands = 12;

// A band, and which of its channels are in the slice: [begin, end).
struct SliceBand {
  BandView view;
  int32_t begin;
  int32_t end;
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

// Fills `slice` for channels [begin, end) of a head. By one warp.
__device__ __forceinline__ void FindBands(const PartView& part, int head, int begin, int end,
                                          SliceBands* slice) {
  const int lane = threadIdx.x % 32;
  const int first = part.head_bands[head];
  const int count = min(part.head_bands[head + 1] - first, kMaxBands);
  BandView band = {};
  int from = 0;
  int to = 0;
  if (lane < count) {
    band = part.bands[first + lane];
    const uint16_t* const ids = part.channels + band.channels;
    const bool whole = begin == 0 && end == part.head_dim;
    from = whole ? 0 : LowerBound(ids, band.size, begin);
    to = whole ? band.size : LowerBound(ids, band.size, end);
    slice->bands[lane] = {band, from, to};
  }
  int groups = 0;
  uint32_t spectral = 0;
  for (int b = 0; b < count; ++b) {
    const int coefficients = __shfl_sync(0xffffffffu, band.coefficients, b);
    const int band_from = __shfl_sync(0xffffffffu, from, b);
    const int band_to = __shfl_sync(0xffffffffu, to, b);
    const uint16_t* const ids = part.channels + __shfl_sync(0xffffffffu, band.channels, b);
    if (coefficients == 0 || band_to == band_from) continue;
    groups = max(groups, (coefficients + 7) / 8);
    for (int j = band_from + lane; j < band_to; j += 32) {
      const int group = (ids[j] - begin) / 8;
      if (group < 32) spectral |= 1u << group;
    }
  }
  spectral = __reduce_or_sync(0xffffffffu, spectral);
  if (lane == 0) {
    slice->count = count;
    slice->groups = groups;
    slice->spectral = spectral;
  }
}

// Zeroes what is between a head's bands. By one warp.
__device__ __forceinline__ void ZeroPadding(const PartView& part, const SliceBands& slice,
                                            uint8_t* payload) {
  const int lane = threadIdx.x % 32;
  if (lane >= slice.count) return;
  const BandView& band = slice.bands[lane].view;
  for (int64_t at = band.data_offset + DataBytes(band, part.segment_tokens); at % 16 != 0; ++at) {
    payload[at] = 0;
  }
}

// U of a head, or null if it is not rotated.
__device__ __forceinline__ const float* RotationOf(const PartView& part, int head) {
  return part.rotations == nullptr ? nullptr : part.rotations[head];
}

}  // namespace fourierkv::kernels::codec
