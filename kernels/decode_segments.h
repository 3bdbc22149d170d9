// Compact segments to dense tensors, on the GPU.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/segment_view.h"

namespace fourierkv::kernels {

struct DecodeSegmentsParams {
  PartView part;
  const uint8_t* const* payloads;  // [segments]: device pointers, 16-byte aligned
  uint16_t* const* dense;  // [segments]: head h at dense[s] + h * head_stride: [S][head_dim]
  int64_t head_stride;     // in elements, a multiple of 8
  ElementType dtype;
  int32_t segments;
};

// Enqueues the decoding of K or V of one layer of every segment. Sums are float; results are
// rounded to nearest even, overflow of fp16 to the largest finite value, as the CPU backend's.
// Pointers must stay valid until the stream has run. May be captured in a graph.
//
// Nothing is enqueued in case of
//   cudaErrorInvalidValue  null or misaligned tables, sizes out of bounds
// and not all is decoded in case of
//   cudaErrorNotSupported  rotated heads too wide for the device's shared memory: 99 KiB a block
//                          are too few for 512 channels
// or what the runtime reports.
cudaError_t LaunchDecodeSegments(const DecodeSegmentsParams& params, cudaStream_t stream);

}  // namespace fourierkv::kernels
