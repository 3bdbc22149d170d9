// Prefill for a codec profile of whole sequences.

#pragma once

#include "absl/status/statusor.h"
#include "clients/prefill_worker/prefill_engine.h"

namespace fourierkv {

// Computes the whole prompt exactly, then sends it as one segment, which the KV service encodes
// with room for task.max_new_tokens more; unless the service holds it with that room already.
// Nothing is stored before everything was computed. Requires runtime.sequence(task.mode).
absl::StatusOr<v1::PrefillResult> RunSequencePrefill(const WorkerRuntime& runtime,
                                                     const PrefillTask& task);

}  // namespace fourierkv
