// Compact segments to dense bf16 tensors, on the GPU.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/segment_view.h"

namespace fourierkv::kernels {

struct DecodeSegmentsParams {
  PartView part;
  const uint8_t* const* payloads;  // [segments]: device pointers, 4-byte aligned
  uint16_t* const* dense;          // [segments]: device pointers to [kv_heads][S][head_dim], bf16
  int32_t segments;
};

// Enqueues the decoding of K or V of one layer of every segment. Sums are float; results are
// rounded to nearest even, as the CPU backend's. Pointers must stay valid until the stream has run.
// cudaErrorInvalidValue, with nothing enqueued, for null tables or sizes out of bounds.
cudaError_t LaunchDecodeSegments(const DecodeSegmentsParams& params, cudaStream_t stream);

}  // namespace fourierkv::kernels
