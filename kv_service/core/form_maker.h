// Makes blobs of one form of a segment out of blobs of another.

#pragma once

#include <span>

#include "absl/status/status.h"
#include "kv_service/core/memory_budget.h"
#include "kv_service/core/patience.h"
#include "kv_service/core/store_metrics.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

class ComputeBackend;

// One blob to be made, as form_planner.h allows: EXACT of LOSSLESS and the other way round, COMPACT
// or ARCHIVED of either (encoded), DENSE of COMPACT or ARCHIVED (decoded) or of exact data
// (copied), COMPACT of ARCHIVED (decoded and encoded, without leaving the rotated channels where
// the two share them). The error of the last is bounded, not measured: no original is at hand, so
// e + (1 + e) e' of its two steps' errors e and e'.
struct MakeJob {
  const StoredSegment* segment = nullptr;
  int layer = 0;
  Part part = Part::kK;
  SegmentForm from = SegmentForm::kExact;
  SegmentForm to = SegmentForm::kCompact;
  FormPart source{};      // verified
  FormPart result{};      // sealed; charged to the budget given
  absl::Status damage{};  // DataLoss: the source was whole, but not of its form; no result
};

// All of `jobs`, some milliseconds of work in a call of the backend; whole sequences part by part.
// Patience::Check when that is over; ResourceExhausted if the budget has no room; OutOfRange
// if values are too far from what the profile's archive section was made for; otherwise the
// backend's errors. Results are undefined after an error.
absl::Status MakeForms(std::span<MakeJob> jobs, ComputeBackend& backend, MemoryBudget& budget,
                       StoreMetrics& metrics, const Patience& patience);

}  // namespace fourierkv
