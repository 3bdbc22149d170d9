// Compact payloads from outside: a checksum says that they arrived whole, not that they make sense.

#pragma once

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {

// InvalidArgument, naming head, band and channel, unless `payload` could have come out of an
// encoder: layout.payload_bytes long; scales from 0 to 2^110; offsets and bf16 values within
// +-2^110; coefficients within +-127; padding zero. Such a payload decodes to finite values only.
// NaN and infinity are thereby refused.
absl::Status CheckPayload(const PartLayout& layout, std::span<const std::byte> payload);

}  // namespace fourierkv
