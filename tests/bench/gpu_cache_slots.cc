#include "tests/bench/gpu_cache_slots.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "compute/backend/cuda/cuda_status.h"

namespace fourierkv {
namespace {

// `bytes` of copies of `host`, one behind the other; what is there already is copied on.
absl::StatusOr<DeviceBuffer> Repeat(const std::vector<std::byte>& host, size_t bytes) {
  absl::StatusOr<DeviceBuffer> device = DeviceBuffer::Create(bytes);
  if (!device.ok()) return device.status();
  size_t filled = std::min(bytes, host.size());
  if (absl::Status status = device->CopyFrom(host.data(), filled); !status.ok()) return status;
  while (filled < bytes) {
    const size_t next = std::min(filled, bytes - filled);
    const cudaError_t error =
        cudaMemcpy(device->data() + filled, device->data(), next, cudaMemcpyDeviceToDevice);
    if (error != cudaSuccess) return CudaStatus(error, "filling the caches");
    filled += next;
  }
  return device;
}

}  // namespace

absl::StatusOr<CacheSlots> CacheSlots::Create(const CachePool& pool, int64_t slots) {
  CacheSlots result;
  absl::StatusOr<DeviceBuffer> k = Repeat(pool.k, slots * pool.k_bytes);
  if (!k.ok()) return k.status();
  absl::StatusOr<DeviceBuffer> v = Repeat(pool.v, slots * pool.v_bytes);
  if (!v.ok()) return v.status();
  result.slots_ = slots;
  result.k_bytes_ = pool.k_bytes;
  result.v_bytes_ = pool.v_bytes;
  result.k_ = *std::move(k);
  result.v_ = *std::move(v);
  return result;
}

}  // namespace fourierkv
