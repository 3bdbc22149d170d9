// Compact segments as they come from elsewhere.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "compute/base/geometry.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {

// The payload of a blob that must be K or V of `layer` of segment `segment` of a profile. DataLoss
// for a damaged blob; InvalidArgument for one of another form, layer, position, geometry, element
// type or profile, or of an error above max_relative_error. A payload that is returned can be
// attended to without giving NaN.
absl::StatusOr<std::span<const std::byte>> OpenCompactBlob(const ProfileLayout& layout,
                                                           KvDtype dtype, int layer, Part part,
                                                           int64_t segment,
                                                           float max_relative_error,
                                                           std::span<const std::byte> blob);

}  // namespace fourierkv
