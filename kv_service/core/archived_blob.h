// Blobs of the ARCHIVED form.

#pragma once

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kv_service/core/store_metrics.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

// Whether `context` has a profile with an archive section.
bool CanArchive(const NamespaceContext& context);

// A sealed blob of exact `values`, [kv_heads][S][head_dim], of a full segment that CanArchive. The
// work of one core. InvalidArgument for values that are not finite; OutOfRange if the values are
// too far from what the profile was made for; ResourceExhausted if `budget` has no room.
absl::StatusOr<FormPart> MakeArchivedBlob(const StoredSegment& segment, int layer, Part part,
                                          std::span<const uint16_t> values, MemoryBudget& budget,
                                          StoreMetrics& metrics);

// The values of an opened blob. DataLoss if its payload is damaged.
absl::Status ReadArchivedBlob(const StoredSegment& segment, int layer, Part part,
                              const BlobBuffer& blob, std::span<uint16_t> values,
                              StoreMetrics& metrics);

// The same as ArchiveCodec::DecodeRotated gives them.
absl::Status ReadArchivedBlobRotated(const StoredSegment& segment, int layer, Part part,
                                     const BlobBuffer& blob, std::span<uint16_t> values,
                                     StoreMetrics& metrics);

}  // namespace fourierkv
