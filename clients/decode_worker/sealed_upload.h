// Stores segments that a decoder has encoded.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "clients/worker/worker_runtime.h"
#include "compute/cache/sealed_segment.h"

namespace fourierkv {

// `sealed` are consecutive segments of the sequence `tokens`, which the service may hold in part
// already; those it lacks are sent, compact. How many were stored; 0 if it does not hold the
// segment before the first.
absl::StatusOr<uint32_t> UploadSealed(const WorkerRuntime& runtime,
                                      std::span<const SealedSegment> sealed,
                                      std::span<const int32_t> tokens, absl::Time deadline);

}  // namespace fourierkv
