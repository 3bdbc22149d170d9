// How much of what a put will store is known before its payload comes.

#pragma once

#include <cstdint>
#include <optional>

#include "kv_service/core/put_plan.h"

namespace fourierkv {

// Bytes of the blobs that a needed segment of a valid plan will add to `stored`, what memory holds
// of it: of EXACT and COMPACT, which have the size that namespace and profile say. LOSSLESS and
// ARCHIVED forms, and exact data kept for an error bound, count as nothing.
int64_t KnownBytes(const PutPlan& plan, const PlannedSegment& planned,
                   const std::optional<StoredSegment>& stored);

}  // namespace fourierkv
