// Decoding of rotated heads.

#pragma once

#include <cuda_runtime_api.h>

#include "kernels/decode_segments.h"

namespace fourierkv::kernels::codec {

// Decodes the rotated heads; LaunchDecodeSegments has checked `params`, which have rotations.
cudaError_t LaunchDecodeRotated(const DecodeSegmentsParams& params, cudaStream_t stream);

}  // namespace fourierkv::kernels::codec
