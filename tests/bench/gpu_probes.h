// How fast device memory is: what the attention benchmark's bytes per second are compared with.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fourierkv {

// Enqueues a kernel that does nothing but read `bytes` of device memory, 16-byte aligned and a
// multiple of 16. `sink`: 4 bytes of device memory, written if the data has one special sum.
cudaError_t LaunchReadProbe(const void* data, int64_t bytes, uint32_t* sink, cudaStream_t stream);

}  // namespace fourierkv
