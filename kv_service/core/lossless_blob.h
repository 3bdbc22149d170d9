// Blobs of the LOSSLESS form.

#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kv_service/core/store_metrics.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

// Values of one part of `segment`: [kv_heads][tokens][head_dim].
size_t PartValues(const StoredSegment& segment);

// A sealed blob of `values`, of as many bytes as it needs; while it is made, one of the largest
// size is charged to `budget` too. ResourceExhausted if there is no room.
absl::StatusOr<FormPart> MakeLosslessBlob(const StoredSegment& segment, int layer, Part part,
                                          std::span<const uint16_t> values, MemoryBudget& budget,
                                          StoreMetrics& metrics);

// The values of an opened blob. DataLoss if its payload is no lossless form of so many values.
absl::Status ReadLosslessBlob(const BlobBuffer& blob, std::span<uint16_t> values,
                              StoreMetrics& metrics);

}  // namespace fourierkv
