#include "compute/backend/cuda/pinned_buffer.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"

namespace fourierkv::cuda {
namespace {

constexpr size_t kMaxPitch = (size_t{1} << 31) - 1;  // that the runtime takes

bool IsPinned(const void* address) {
  cudaPointerAttributes attributes = {};
  if (cudaPointerGetAttributes(&attributes, address) != cudaSuccess) {
    cudaGetLastError();  // so that the next launch is not blamed for it
    return false;
  }
  return attributes.type == cudaMemoryTypeHost;
}

}  // namespace

void PinnedBuffer::Free::operator()(std::byte* data) const { cudaFreeHost(data); }

absl::Status PinnedBuffer::Reserve(size_t size) {
  if (size <= size_) return absl::OkStatus();
  data_.reset();
  size_ = 0;
  void* data = nullptr;
  if (const cudaError_t error = cudaHostAlloc(&data, size, cudaHostAllocDefault);
      error != cudaSuccess) {
    cudaGetLastError();
    return CudaStatus(error, absl::StrCat("allocating ", size, " bytes of pinned host memory"));
  }
  size_ = size;
  data_.reset(static_cast<std::byte*>(data));
  return absl::OkStatus();
}

bool IsPinned(const ConstHostRows& rows) {
  return rows.bytes() > 0 && rows.pitch <= kMaxPitch && IsPinned(rows.data) &&
         IsPinned(rows.data + (rows.rows - 1) * rows.pitch + rows.width - 1);
}

}  // namespace fourierkv::cuda
