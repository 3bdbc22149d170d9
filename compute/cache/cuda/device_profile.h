// A codec profile as the kernels of one device read it.

#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"
#include "compute/backend/cuda/device_layout.h"
#include "compute/codec/segment_layout.h"
#include "kernels/attention_plan.h"

namespace fourierkv {

// Immutable; launches of any stream and thread may share it.
class DeviceProfile {
 public:
  // InvalidArgument for a profile that spans whole sequences; Unimplemented, naming the layer, for
  // one that the attention kernel cannot run; ResourceExhausted.
  static absl::StatusOr<std::shared_ptr<const DeviceProfile>> Create(
      std::shared_ptr<const ProfileLayout> layout);

  const ProfileLayout& layout() const { return *layout_; }
  const KvGeometry& geometry() const { return layout_->profile().geometry; }
  int segment_tokens() const { return layout_->profile().segment_tokens; }
  const kernels::PartView& part(int layer, Part part) const {
    return parts_[static_cast<size_t>(layer) * 2 + static_cast<size_t>(part)].view();
  }
  const kernels::AttentionPlanView& plan(int layer) const { return plans_[layer].view; }

 private:
  struct Plan {
    DeviceBuffer data;
    kernels::AttentionPlanView view;
  };

  explicit DeviceProfile(std::shared_ptr<const ProfileLayout> layout)
      : layout_(std::move(layout)) {}
  absl::Status AddLayer(int layer);

  const std::shared_ptr<const ProfileLayout> layout_;
  std::vector<DevicePart> parts_;  // index: layer * 2 + part
  std::vector<Plan> plans_;
};

}  // namespace fourierkv
