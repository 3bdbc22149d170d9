// Kernels that start while the one before them is still running (programmatic dependent launch,
// compute capability 9.0): what does not depend on it, such as reading weights, then overlaps.

#pragma once

#include <cuda_runtime.h>

namespace fourierkv::kernels {

// Lets the next kernel of the stream start, if that was launched by LaunchDependent, once every
// block of this one has come here. It sees nothing of what this one writes before its own
// WaitForPrerequisites.
__device__ __forceinline__ void LetDependentsStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Returns when everything before this kernel has ended and can be read. Nothing that other kernels
// write may be read, and nothing at all written, before.
__device__ __forceinline__ void WaitForPrerequisites() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Launches a kernel that calls WaitForPrerequisites, early if `early`, for which the device needs
// compute capability 9.0. `shared`: bytes of dynamic shared memory.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchDependentIf(bool early, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                              size_t shared, cudaStream_t stream, Arguments... arguments) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

// The same, early wherever the device can.
template <typename... Parameters, typename... Arguments>
cudaError_t LaunchDependent(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                            cudaStream_t stream, Arguments... arguments) {
  int device = 0, major = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  }
  if (status != cudaSuccess) return status;
  return LaunchDependentIf(major >= 9, kernel, grid, block, shared, stream, arguments...);
}

}  // namespace fourierkv::kernels
