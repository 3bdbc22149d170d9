#include "compute/backend/cuda/device_buffer.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"

namespace fourierkv {
namespace {

absl::Status TooLong(size_t asked, size_t size) {
  return absl::InvalidArgumentError(
      absl::StrCat("copying ", asked, " bytes: the device buffer has ", size));
}

}  // namespace

void DeviceBuffer::Free::operator()(std::byte* data) const { cudaFree(data); }

absl::StatusOr<DeviceBuffer> DeviceBuffer::Create(size_t size) {
  DeviceBuffer buffer;
  if (size == 0) return buffer;
  void* data = nullptr;
  if (const cudaError_t error = cudaMalloc(&data, size); error != cudaSuccess) {
    cudaGetLastError();  // so that the next launch is not blamed for it
    return CudaStatus(error, absl::StrCat("allocating ", size, " bytes of device memory"));
  }
  buffer.size_ = size;
  buffer.data_.reset(static_cast<std::byte*>(data));
  return buffer;
}

absl::StatusOr<DeviceBuffer> DeviceBuffer::CopyOf(const void* host, size_t size) {
  absl::StatusOr<DeviceBuffer> buffer = Create(size);
  if (!buffer.ok()) return buffer;
  if (absl::Status status = buffer->CopyFrom(host, size); !status.ok()) return status;
  return buffer;
}

absl::Status DeviceBuffer::CopyFrom(const void* host, size_t size) {
  if (size > size_) return TooLong(size, size_);
  if (size == 0) return absl::OkStatus();
  return CudaStatus(cudaMemcpy(data(), host, size, cudaMemcpyHostToDevice),
                    absl::StrCat("copying ", size, " bytes to the device"));
}

absl::Status DeviceBuffer::CopyTo(void* host, size_t size) const {
  if (size > size_) return TooLong(size, size_);
  if (size == 0) return absl::OkStatus();
  return CudaStatus(cudaMemcpy(host, data(), size, cudaMemcpyDeviceToHost),
                    absl::StrCat("copying ", size, " bytes from the device"));
}

}  // namespace fourierkv
