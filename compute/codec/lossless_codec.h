// The lossless form of K or V: byte planes, each compressed with zstd where that helps.
//
//   payload := u32 high_size, u32 low_size, high[high_size], low[low_size]
//
// `high` and `low` are the upper and lower bytes of all values in their order. A plane as long as
// there are values is stored as it is; a shorter one is a zstd frame of it. The upper bytes hold
// sign and most of the exponent and shrink to about a third; the lower bytes are nearly noise.

#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/codec/segment_blob.h"

namespace fourierkv {

// The largest payload of `count` values.
constexpr size_t LosslessBound(size_t count) { return 2 * count + kLosslessOverheadBytes; }

// Writes the payload of `values`, any 16-bit patterns, to the front of `out` and returns its size.
// Requires out.size() >= LosslessBound(values.size()) and at most 2^31 values. The same values give
// the same bytes with the same version of zstd only. ResourceExhausted without memory for zstd.
absl::StatusOr<size_t> LosslessEncode(std::span<const uint16_t> values, std::span<std::byte> out);

// The values again, bit for bit. DataLoss, leaving `values` undefined, if
// `payload` is not a whole payload of exactly values.size() values. Memory is proportional to
// values.size(), whatever the payload claims.
absl::Status LosslessDecode(std::span<const std::byte> payload, std::span<uint16_t> values);

}  // namespace fourierkv
