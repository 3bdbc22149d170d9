// Who does what in the attention of a decode step.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"
#include "kernels/fourier_attention.h"

namespace fourierkv {

// Schedules of attention to compact caches, made once a step: one for all layers that can share it,
// as layers nearly always can. For one stream at a time.
class AttentionSchedules {
 public:
  AttentionSchedules() = default;

  // For steps of up to `max_batch` sequences; `plans`: of all layers, at least one. InvalidArgument
  // if attention cannot run with them on this device; ResourceExhausted for want of device memory.
  static absl::StatusOr<AttentionSchedules> Create(
      const std::vector<kernels::AttentionPlanView>& plans, int max_batch, int query_heads);

  // Enqueues the making of all schedules for `rows` sequences, up to max_batch. Offsets are as
  // LaunchAttentionSchedule takes them; they may change between replays of a captured graph.
  absl::Status Enqueue(int rows, const int32_t* segment_offsets, const int32_t* page_offsets,
                       cudaStream_t stream) const;

  // What attention of a layer takes then.
  kernels::AttentionSchedule Of(int layer, int rows) const;

 private:
  struct Shared {
    kernels::AttentionScheduleShape shape;  // of max_batch sequences
    DeviceBuffer memory;
  };
  static kernels::AttentionSchedule For(const Shared& shared, int rows);

  std::vector<Shared> schedules_;
  std::vector<int> of_layer_;
};

}  // namespace fourierkv
