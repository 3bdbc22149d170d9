// What is done, slowly, for a head with values that are not finite or whose squares leave float's
// range: name the first bad one, or measure the error in double.

#pragma once

#include <cstdint>

#include "kernels/encode_report.cuh"

namespace fourierkv::kernels::codec {

// Of a band's channel j at token t, as stored.
__device__ inline double StoredValue(const PartView& part, const BandView& band,
                                     const uint8_t* payload, int j, int t) {
  const int s = part.segment_tokens;
  const uint8_t* const data = payload + band.data_offset;
  const auto half = [](const uint8_t* at, int64_t i) -> double {
    return Bf16ToFloat(reinterpret_cast<const uint16_t*>(at)[i]);
  };
  if (band.coefficients > 0) {
    double sum = 0;
    for (int m = 0; m < band.coefficients; ++m) {
      const int64_t i = static_cast<int64_t>(m) * band.size + j;
      const double c = band.bits == 16 ? half(data, i) : reinterpret_cast<const int8_t*>(data)[i];
      sum += c * part.basis[m * s + t];
    }
    return band.bits == 16 ? sum : sum * half(payload + band.scale_offset, j);
  }
  if (band.bits == 16) return half(data, static_cast<int64_t>(j) * s + t);
  const auto plane = [j, t, s](const uint8_t* at, int bits) -> uint32_t {
    const int words = s * bits / 32;
    const uint32_t word = reinterpret_cast<const uint32_t*>(at)[j * words + t % words];
    return word >> (t / words * bits) & ((1u << bits) - 1);
  };
  uint32_t code;
  if (band.bits == 8) {
    code = data[static_cast<int64_t>(j) * s + t];
  } else if (band.bits == 3) {
    code = plane(data, 2) | plane(payload + band.high_offset, 1) << 2;
  } else {
    code = plane(data, band.bits);
  }
  return half(payload + band.zero_offset, j) + half(payload + band.scale_offset, j) * code;
}

// For channels [begin, end) of `head`, whose payload this block has written. With `rotation`, for
// columns at these places in the order of the bands; begin must be 0 and end head_dim then. All
// threads of the block, between barriers. `found` is in shared memory.
template <ElementType kType>
__device__ inline void ExamineUnusual(const EncodeSegmentsParams& params, int segment, int head,
                                      int begin, int end, const float* rotation, Totals* totals,
                                      int32_t* found) {
  const PartView& part = params.part;
  const int d = part.head_dim;
  const uint16_t* const x = params.dense[segment] + head * params.head_stride;
  if (threadIdx.x == 0) {
    found[0] = kNone;
    found[1] = 0;
  }
  __syncthreads();
  const int width = end - begin;
  const auto value = [x, d](int t, int channel) {
    return Element<kType>::ToFloat(x[static_cast<int64_t>(t) * d + channel]);
  };
  for (int i = threadIdx.x; i < part.segment_tokens * width; i += kThreads) {
    const int t = i / width;
    const int channel = begin + i % width;
    const float magnitude = fabsf(value(t, channel));
    if (!(magnitude <= kLargestMagnitude)) {
      atomicMin(found, (head * part.segment_tokens + t) * d + channel);
    } else if (magnitude > 0) {
      found[1] = 1;
    }
  }
  __syncthreads();
  totals->energy = totals->error = 0;
  if (found[0] != kNone || found[1] == 0) return;
  for (int b = part.head_bands[head]; b < part.head_bands[head + 1]; ++b) {
    const BandView& band = part.bands[b];
    for (int i = threadIdx.x; i < band.size * part.segment_tokens; i += kThreads) {
      const int j = i / part.segment_tokens;
      const int t = i % part.segment_tokens;
      const int channel = part.channels[band.channels + j];
      if (rotation == nullptr && (channel < begin || channel >= end)) continue;
      double sum = 0;
      if (rotation == nullptr) {
        sum = value(t, channel);
      } else {
        for (int c = 0; c < d; ++c) {
          sum += static_cast<double>(value(t, c)) * rotation[static_cast<int64_t>(c) * d + channel];
        }
      }
      const double difference = sum - StoredValue(part, band, params.payloads[segment], j, t);
      totals->energy += sum * sum;
      totals->error += difference * difference;
    }
  }
}

}  // namespace fourierkv::kernels::codec
