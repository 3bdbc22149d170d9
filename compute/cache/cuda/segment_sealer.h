// Encodes, on the device, what has become old enough to be compact.

#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"
#include "compute/cache/cuda/device_kv_cache.h"
#include "compute/cache/cuda/device_kv_pool.h"
#include "kernels/encode_segments.h"

namespace fourierkv {

// For the caches of one pool; one thread, the pool's.
class SegmentSealer {
 public:
  // Workspace for up to `batch` segments at a time: 1 to 1024.
  static absl::StatusOr<std::unique_ptr<SegmentSealer>> Create(std::shared_ptr<DeviceKvPool> pool,
                                                               int batch = 32);

  // Encodes every segment that is due in `caches`, behind what is enqueued on `stream`, and waits
  // for it. A segment that cannot be encoded within its cache's bound stays exact.
  //
  // ResourceExhausted if the pool has too few slots; InvalidArgument for values that cannot be
  // encoded. The batch in which that happens is left exact.
  absl::Status Seal(std::span<DeviceKvCache* const> caches, cudaStream_t stream);

 private:
  struct Job {
    DeviceKvCache* cache;
    int32_t block;
    int32_t slot;
  };

  SegmentSealer(std::shared_ptr<DeviceKvPool> pool, int batch)
      : pool_(std::move(pool)), batch_(batch) {}
  // The next segments that are due, with slots.
  absl::StatusOr<std::vector<Job>> TakeJobs(std::span<DeviceKvCache* const> caches);
  // Writes payloads, and reports_: [layers * 2][jobs].
  absl::Status Encode(std::span<const Job> jobs, cudaStream_t stream);
  absl::Status CheckReports(std::span<const Job> jobs) const;
  void Settle(std::span<const Job> jobs);

  const std::shared_ptr<DeviceKvPool> pool_;
  const int batch_;
  std::vector<const void*> pointers_;  // dense [layers * 2][jobs], payloads likewise
  DeviceBuffer device_pointers_;
  std::vector<kernels::EncodeReport> reports_;
  DeviceBuffer device_reports_;
  DeviceBuffer workspace_;
};

}  // namespace fourierkv
