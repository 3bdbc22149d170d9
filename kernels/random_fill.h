// Random numbers in device memory, for benchmarks.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fourierkv::kernels {

// Fills `out` with `count` bf16 values that depend only on `seed` and their index: sums of four
// uniform ones, about normal, of mean 0 and standard deviation `deviation`. `out` is device memory,
// 8-byte aligned, `count` a multiple of 4; cudaErrorInvalidValue otherwise.
cudaError_t LaunchFillRandom(uint16_t* out, int64_t count, float deviation, uint64_t seed,
                             cudaStream_t stream);

}  // namespace fourierkv::kernels
