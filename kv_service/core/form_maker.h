// Makes blobs of one form of a segment out of blobs of another.

#pragma once

#include <span>

#include "absl/status/status.h"
#include "kv_service/core/memory_budget.h"
#include "kv_service/core/store_metrics.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

class ComputeBackend;

// One blob to be made, as form_planner.h allows: EXACT of LOSSLESS and the other way round, COMPACT
// of either (encoded), DENSE of COMPACT (decoded) or of either (copied).
struct MakeJob {
  const StoredSegment* segment = nullptr;
  int layer = 0;
  Part part = Part::kK;
  SegmentForm from = SegmentForm::kExact;
  SegmentForm to = SegmentForm::kCompact;
  FormPart source{};      // verified
  FormPart result{};      // sealed; charged to the budget given
  absl::Status damage{};  // DataLoss: the source was whole, but is no lossless form; no result
};

// All of `jobs` in as few calls of the backend as there are kinds and dtypes. ResourceExhausted if
// the budget has no room; otherwise the backend's errors. Results are undefined after an error.
absl::Status MakeForms(std::span<MakeJob> jobs, ComputeBackend& backend, MemoryBudget& budget,
                       StoreMetrics& metrics);

}  // namespace fourierkv
