// What the header and values of a segment's blob must be.

#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "compute/codec/segment_blob.h"
#include "compute/codec/segment_layout.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

// The header of one blob of `segment`, whose forms do not matter. COMPACT requires a profile and a
// full segment or a whole sequence, ARCHIVED one with an archive section too. For forms without a
// fixed size payload_bytes is the most there can be.
BlobHeader ExpectedHeader(const StoredSegment& segment, SegmentForm form, int layer, Part part,
                          float relative_error);

// InvalidArgument naming the first field in which `header` is not what it should be; relative_error
// apart, and a payload may be smaller than expected if its form has no fixed size.
absl::Status CheckHeader(const BlobHeader& header, const BlobHeader& expected);

// Values larger than this are refused: codecs could not hold them, and no model makes them.
inline constexpr float kMaxMagnitude = 1e30f;

// Position of the first of `values` that is NaN, infinite or beyond +-kMaxMagnitude.
std::optional<int64_t> FirstBadValue(std::span<const uint16_t> values, KvDtype dtype);

}  // namespace fourierkv
