// Layouts of compact segments as kernels see them (kernels/segment_view.h), in host and device
// memory.

#pragma once

#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"
#include "compute/base/aligned_buffer.h"
#include "compute/codec/segment_layout.h"
#include "kernels/segment_view.h"

namespace fourierkv {

// K or V of one layer with tables in host memory, as kernels::BuildAttentionPlan reads them. A
// copy: the layout may go.
class HostPart {
 public:
  explicit HostPart(const PartLayout& layout);

  // Points into this object (moving which does not move the tables).
  const kernels::PartView& view() const { return view_; }

 private:
  AlignedBuffer tables_;
  kernels::PartView view_;
};

// The same with tables in memory of the device that was current when it was made. Immutable, so
// launches of any stream and thread may share it.
class DevicePart {
 public:
  // ResourceExhausted or what the runtime reports. The tables are there on return.
  static absl::StatusOr<DevicePart> Create(const PartLayout& layout);

  const kernels::PartView& view() const { return view_; }

 private:
  DeviceBuffer tables_;
  kernels::PartView view_ = {};
};

}  // namespace fourierkv
