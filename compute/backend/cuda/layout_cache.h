// Layouts in device memory, made when they are first needed.

#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"
#include "compute/backend/cuda/device_layout.h"
#include "compute/base/lru_map.h"
#include "compute/codec/segment_layout.h"
#include "kernels/attention_plan.h"

namespace fourierkv::cuda {

// Keeps what it made by PartLayout::id, so layouts may come and go. What it gives stays valid until
// the next BeginCall. One thread.
class LayoutCache {
 public:
  // Forgets what was used longest ago, if there is very much. Nothing may be running that uses it.
  void BeginCall();
  // Forgets everything.
  void Clear();

  // Both: ResourceExhausted, or what the runtime reports.
  absl::StatusOr<const kernels::PartView*> Part(const PartLayout& layout);
  // How the attention kernel walks over segments of these layouts; null if it cannot.
  absl::StatusOr<const kernels::AttentionPlanView*> Plan(const PartLayout& k, const PartLayout& v);
  // The same for caches without segments.
  absl::StatusOr<const kernels::AttentionPlanView*> ExactPlan(int kv_heads, int head_dim);

 private:
  struct DevicePlan {
    bool possible = false;
    DeviceBuffer data;
    kernels::AttentionPlanView view = {};
  };

  LruMap<uint64_t, DevicePart> parts_;
  LruMap<std::pair<uint64_t, uint64_t>, DevicePlan> plans_;
  // By KV heads and head dimension: layouts that no segment has.
  LruMap<std::pair<int, int>, std::unique_ptr<const ProfileLayout>> exact_layouts_;
};

}  // namespace fourierkv::cuda
