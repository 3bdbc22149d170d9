#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/attention_line.h"
#include "kernels/attention_schedule.h"

namespace fourierkv::kernels {
namespace {

constexpr int kThreads = 128;

__global__ void ScheduleKernel(AttentionScheduleShape shape, const int32_t* segment_offsets,
                               const int32_t* page_offsets, AttentionEntry* entries) {
  const AttentionLine line(shape, segment_offsets, page_offsets);
  bool some_empty = false;
  if (blockIdx.x * kThreads < shape.workers) {  // only workers' entries say so
    bool empty = false;
    for (int b = threadIdx.x; b < shape.batch; b += kThreads) empty |= line.Empty(b);
    some_empty = __syncthreads_or(empty) != 0;
  }
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index < AttentionLine::Entries(shape)) entries[index] = line.Make(index, some_empty);
}

bool Valid(const AttentionScheduleShape& shape) {
  return shape.batch >= 1 && shape.batch <= 65535 && shape.kv_heads >= 1 && shape.kv_heads <= 256 &&
         shape.query_heads >= shape.kv_heads && shape.query_heads % shape.kv_heads == 0 &&
         shape.query_heads / shape.kv_heads <= 16 &&
         (shape.units_per_segment == 1 || shape.units_per_segment == 2 ||
          shape.units_per_segment == 4) &&
         (shape.worker_warps == 1 || shape.worker_warps == 4) && shape.processors >= 1 &&
         shape.workers >= 1 && shape.workers <= kMaxWorkers &&
         shape.workers % (shape.processors * WorkersOfBlock(shape)) == 0 && shape.unit_cost >= 1 &&
         shape.unit_cost <= kMaxCost && shape.page_cost >= 1 && shape.page_cost <= kMaxCost;
}

bool MaybeAligned(const void* pointer, int64_t to) {
  return reinterpret_cast<uintptr_t>(pointer) % to == 0;
}

}  // namespace

int64_t AttentionScheduleBytes(const AttentionScheduleShape& shape) {
  if (!Valid(shape)) return -1;
  return AttentionLine::Entries(shape) * static_cast<int64_t>(sizeof(AttentionEntry));
}

cudaError_t LaunchAttentionSchedule(const AttentionSchedule& schedule,
                                    const int32_t* segment_offsets, const int32_t* page_offsets,
                                    cudaStream_t stream) {
  const int64_t bytes = AttentionScheduleBytes(schedule.shape);
  if (bytes < 0 || schedule.bytes < bytes || schedule.data == nullptr ||
      !MaybeAligned(schedule.data, 16) || !MaybeAligned(segment_offsets, 4) ||
      !MaybeAligned(page_offsets, 4)) {
    return cudaErrorInvalidValue;
  }
  const int64_t entries = AttentionLine::Entries(schedule.shape);
  const auto blocks = static_cast<unsigned>((entries + kThreads - 1) / kThreads);
  ScheduleKernel<<<blocks, kThreads, 0, stream>>>(schedule.shape, segment_offsets, page_offsets,
                                                  static_cast<AttentionEntry*>(schedule.data));
  return cudaGetLastError();
}

}  // namespace fourierkv::kernels
