// Schedules of attention: who works on what, made once a step for all layers.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/attention_entry.h"

namespace fourierkv::kernels {

// A schedule in device memory, and what it was made for.
struct AttentionSchedule {
  AttentionScheduleShape shape;  // FourierAttentionShape() gives it
  void* data;                    // 16-byte aligned
  int64_t bytes;                 // at least AttentionScheduleBytes(shape)
};

// Bytes of device memory that a schedule takes; negative: sizes out of bounds.
int64_t AttentionScheduleBytes(const AttentionScheduleShape& shape);

// Enqueues the making of a schedule of sequences that have segments segment_offsets[b] ..
// segment_offsets[b + 1] of a table of segments, and pages likewise: [batch + 1] in device memory,
// increasing, first 0; null if there are none. Nothing has to be set before. Offsets may change
// between replays of a captured graph.
//
// cudaErrorInvalidValue, and nothing is enqueued: null or misaligned pointers, sizes out of
// bounds, too little memory. Otherwise what the runtime reports.
cudaError_t LaunchAttentionSchedule(const AttentionSchedule& schedule,
                                    const int32_t* segment_offsets, const int32_t* page_offsets,
                                    cudaStream_t stream);

}  // namespace fourierkv::kernels
