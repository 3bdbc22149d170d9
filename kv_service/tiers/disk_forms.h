// Forms of segments as chunks in a disk database.

#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "kv_service/core/patience.h"
#include "kv_service/core/segment_record.h"
#include "kv_service/tiers/disk_database.h"

namespace fourierkv {

// Writes a form that `segment` holds. What must be written together with the segment's description
// is left in `last`; a record too large for one batch is marked, and what comes before goes out by
// `write`. Fails if that does, or as Patience::Check when that is over.
absl::Status WriteDiskForm(const StoredSegment& segment, SegmentForm form,
                           const DiskDatabase& database,
                           const std::function<absl::Status(DiskDatabase::Batch&)>& write,
                           DiskDatabase::Batch& last, const Patience& patience);

// Adds to `batch` the deletion of a form whose blobs have `form_bytes` together.
void DeleteDiskForm(const StoredSegment& segment, SegmentForm form, int64_t form_bytes,
                    DiskDatabase::Batch& batch);

// The same of a form that WriteDiskForm may have written a part of.
void AbandonDiskForm(const StoredSegment& segment, SegmentForm form, int64_t form_bytes,
                     DiskDatabase::Batch& batch);

// Reads a form whose blobs have `form_bytes` together into `reader`, which is not finished then.
// As Patience::Check; otherwise the statuses of the database and the reader.
absl::Status ReadDiskForm(DiskDatabase& database, const StoredSegment& segment, SegmentForm form,
                          int64_t form_bytes, const Patience& patience, RecordReader& reader);

}  // namespace fourierkv
