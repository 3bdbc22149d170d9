#include "compute/model/cuda/attention_schedules.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/backend/cuda/cuda_status.h"

namespace fourierkv {
namespace {

// Whether one schedule serves both: costs only matter to who waits for whom.
bool CanShare(const kernels::AttentionScheduleShape& a, const kernels::AttentionScheduleShape& b) {
  return a.units_per_segment == b.units_per_segment && a.worker_warps == b.worker_warps &&
         a.workers == b.workers && a.kv_heads == b.kv_heads;
}

}  // namespace

absl::StatusOr<AttentionSchedules> AttentionSchedules::Create(
    const std::vector<kernels::AttentionPlanView>& plans, int max_batch, int query_heads) {
  AttentionSchedules made;
  for (const kernels::AttentionPlanView& plan : plans) {
    kernels::AttentionScheduleShape shape = {};
    const cudaError_t status = kernels::FourierAttentionShape(plan, max_batch, query_heads,
                                                              kernels::ElementType::kBf16, &shape);
    if (status == cudaErrorInvalidValue || status == cudaErrorInvalidConfiguration) {
      cudaGetLastError();  // so that the next launch is not blamed for it
      return absl::InvalidArgumentError(absl::StrCat("attention of ", max_batch, " sequences of ",
                                                     query_heads,
                                                     " query heads cannot run on this device"));
    }
    if (absl::Status s = CudaStatus(status, "looking at the attention kernel"); !s.ok()) return s;
    const auto found =
        std::find_if(made.schedules_.begin(), made.schedules_.end(),
                     [&](const Shared& shared) { return CanShare(shared.shape, shape); });
    made.of_layer_.push_back(static_cast<int>(found - made.schedules_.begin()));
    if (found != made.schedules_.end()) continue;
    absl::StatusOr<DeviceBuffer> memory =
        DeviceBuffer::Create(static_cast<size_t>(kernels::AttentionScheduleBytes(shape)));
    if (!memory.ok()) return memory.status();
    made.schedules_.push_back({shape, *std::move(memory)});
  }
  return made;
}

kernels::AttentionSchedule AttentionSchedules::For(const Shared& shared, int rows) {
  kernels::AttentionSchedule schedule = {shared.shape, shared.memory.data(),
                                         static_cast<int64_t>(shared.memory.size())};
  schedule.shape.batch = rows;
  return schedule;
}

absl::Status AttentionSchedules::Enqueue(int rows, const int32_t* segment_offsets,
                                         const int32_t* page_offsets, cudaStream_t stream) const {
  for (const Shared& shared : schedules_) {
    absl::Status s = CudaStatus(
        kernels::LaunchAttentionSchedule(For(shared, rows), segment_offsets, page_offsets, stream),
        "making a schedule of attention");
    if (!s.ok()) return s;
  }
  return absl::OkStatus();
}

kernels::AttentionSchedule AttentionSchedules::Of(int layer, int rows) const {
  return For(schedules_[of_layer_[layer]], rows);
}

}  // namespace fourierkv
