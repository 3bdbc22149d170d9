// How fast device memory is: what the attention benchmark's bytes per second are compared with.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fourierkv {

// Enqueues a kernel that copies `bytes`, a multiple of 16, between 16-byte aligned device memory.
// (The runtime's own copies may go through a slower engine, above all in graphs.)
cudaError_t LaunchCopyProbe(void* target, const void* source, int64_t bytes, cudaStream_t stream);

// Enqueues a kernel that does nothing but read `bytes` of device memory, 16-byte aligned and a
// multiple of 16. `sink`: 4 bytes of device memory, written if the data has one special sum.
cudaError_t LaunchReadProbe(const void* data, int64_t bytes, uint32_t* sink, cudaStream_t stream);

}  // namespace fourierkv
