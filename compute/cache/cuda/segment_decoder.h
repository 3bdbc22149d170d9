// A sequence's compact segments as dense tensors, one layer at a time.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "compute/backend/cuda/device_buffer.h"
#include "compute/cache/cuda/device_kv_cache.h"
#include "compute/cache/cuda/device_kv_pool.h"

namespace fourierkv {

// Many query tokens attend to decoded segments: what decoding costs is then little beside their
// attention, which no longer is bound by the bytes that it reads. One thread.
class SegmentDecoder {
 public:
  explicit SegmentDecoder(std::shared_ptr<const DeviceKvPool> pool) : pool_(std::move(pool)) {}

  // Decode will be of `cache`, as it is now. Device memory for its segments is kept for the next
  // one. ResourceExhausted if there is too little.
  absl::Status Prepare(const DeviceKvCache& cache, cudaStream_t stream);

  // Enqueues the decoding of K and V of `layer` of every segment to data().
  absl::Status Decode(int layer, cudaStream_t stream) const;

  // [segments][2][kv_heads][S][head_dim], bf16; null if the cache has no segments.
  const uint16_t* data() const { return segments_ == 0 ? nullptr : data_.as<const uint16_t>(); }

 private:
  const std::shared_ptr<const DeviceKvPool> pool_;
  int segments_ = 0;
  DeviceBuffer data_;
  std::vector<const void*> pointers_;  // payloads [layers][2][segments], then dense [2][segments]
  DeviceBuffer device_pointers_;
};

}  // namespace fourierkv
