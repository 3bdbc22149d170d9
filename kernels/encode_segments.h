// Dense tensors to compact segments, on the GPU.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/segment_view.h"

namespace fourierkv::kernels {

// What became of K or V of one segment.
struct EncodeReport {
  float relative_error;  // ||X - X^||_F / ||X||_F over all heads; 0 if X is 0
  int32_t refused;       // not 0: a value is NaN, infinite or beyond +-1e30; the payload is void
  int32_t head;          // of the first such value, in order of head, token, channel
  int32_t token;
  int32_t channel;
};

struct EncodeSegmentsParams {
  PartView part;
  const uint16_t* const* dense;  // [segments]: head h at dense[s] + h * head_stride: [S][head_dim]
  int64_t head_stride;           // in elements, a multiple of 8
  ElementType dtype;
  uint8_t* const* payloads;  // [segments]: device pointers, 16-byte aligned; wholly written
  int64_t payload_bytes;     // of one segment
  EncodeReport* reports;     // [segments], device memory
  void* workspace;           // EncodeSegmentsWorkspace() bytes of device memory, 256-byte aligned
  int32_t segments;
};

// Device memory that LaunchEncodeSegments needs beside its results; 0 for sizes out of bounds. What
// is in it does not matter; one launch at a time may use it.
int64_t EncodeSegmentsWorkspace(const PartView& part, int32_t segments);

// Enqueues the encoding of K or V of one layer of every segment: integers as the float64 reference
// (compute/codec/reference_codec.h) but for quotients that are ties within float rounding. Entries
// of rotations must be multiples of 1 / 32767, as those of profiles are. Results do not vary from
// run to run, or with the segments that are encoded together. Every table and pointer must stay
// valid until the stream has run. May be captured in a graph.
//
// Nothing is enqueued in case of
//   cudaErrorInvalidValue  null or misaligned pointers, sizes out of bounds
// and no payload is complete in case of
//   cudaErrorNotSupported  rotated heads too wide for the device's shared memory: 163 KiB a block
//                          are too few for 512 channels with 64 coefficients
// or what the runtime reports.
cudaError_t LaunchEncodeSegments(const EncodeSegmentsParams& params, cudaStream_t stream);

}  // namespace fourierkv::kernels
