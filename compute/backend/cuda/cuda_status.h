// What the CUDA runtime says, as a Status.

#pragma once

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace fourierkv {

// Ok for cudaSuccess; otherwise "WHAT: the runtime's words (its name)" with the code that fits:
//   ResourceExhausted   out of device memory
//   InvalidArgument     what a launcher refuses: null or misaligned pointers, sizes out of bounds
//   FailedPrecondition  no device, no driver or one too old for the program
//   Unimplemented       not supported by this device
//   Internal            everything else, sticky errors of earlier launches included
absl::Status CudaStatus(cudaError_t error, absl::string_view what);

}  // namespace fourierkv
