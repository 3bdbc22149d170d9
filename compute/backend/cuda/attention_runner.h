// Attention of host queries over caches in host memory, on the GPU.

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/compute_backend.h"
#include "compute/backend/cuda/device_contents.h"
#include "compute/backend/cuda/growing_buffer.h"
#include "compute/backend/cuda/layout_cache.h"
#include "compute/backend/cuda/staged_copy.h"
#include "compute/backend/cuda/stream.h"
#include "kernels/attention_plan.h"
#include "kernels/fourier_attention.h"
#include "kernels/prefill_attention.h"

namespace fourierkv::cuda {

// One query token reads compact segments as they are (kernels/fourier_attention.h). More of them,
// or a profile that this kernel cannot run, attend to decoded segments
// (kernels/prefill_attention.h). Blocks stay on the device from call to call. One thread.
class AttentionRunner {
 public:
  // Both must outlive this. `kept_bytes` of device memory for blocks between calls.
  static absl::StatusOr<std::unique_ptr<AttentionRunner>> Create(StagedUpload* upload,
                                                                 LayoutCache* layouts,
                                                                 int64_t kept_bytes);

  // For validated arguments. ResourceExhausted, or what the runtime reports; copies may still be
  // under way then.
  absl::Status Attend(const AttentionArgs& args);
  // Gives the device's memory back. Nothing may be running.
  void Clear();

 private:
  AttentionRunner() = default;

  // Null if segments must be decoded.
  absl::StatusOr<const kernels::AttentionPlanView*> FindPlan(const AttentionArgs& args);
  // Unimplemented if the kernel does not take such sizes.
  absl::Status AttendCompact(const AttentionArgs& args, const kernels::AttentionPlanView& plan);
  absl::Status AttendDecoded(const AttentionArgs& args);

  absl::Status FindSegments(const LayerKv& kv, std::vector<kernels::SegmentRef>* segments);
  absl::Status FindPages(const LayerKv& kv, std::vector<kernels::PageRef>* pages);
  // Decodes K or V of all segments: [segments][kv_heads][S][head_dim] at `to`.
  absl::Status Decode(const LayerKv& kv, Part part, std::span<const kernels::SegmentRef> segments,
                      std::byte* tables, uint16_t* to);

  StagedUpload* upload_ = nullptr;
  LayoutCache* layouts_ = nullptr;
  std::unique_ptr<DeviceContents> contents_;
  std::unique_ptr<StagedDownload> download_;
  Stream stream_;
  GrowingBuffer vectors_;    // queries, outputs, tables
  GrowingBuffer decoded_;    // segments
  GrowingBuffer workspace_;  // of the attention kernel: zero when new
  GrowingBuffer schedule_;   // of its last launch
};

}  // namespace fourierkv::cuda
