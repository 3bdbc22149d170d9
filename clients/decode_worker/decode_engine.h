// Continues a prompt from the KV cache that the service holds.

#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "clients/worker/worker_runtime.h"
#include "compute/model/sampler.h"
#include "fourierkv/v1/decode_service.pb.h"

namespace fourierkv {

struct GenerateTask {
  std::vector<int32_t> tokens;   // the whole prompt
  int64_t prefilled_tokens = 0;  // length of a prefix that was prefilled on its own, or 0
  int max_new_tokens = 1;
  std::vector<int32_t> stop_tokens;  // besides the model's own
  SamplingOptions sampling;
  v1::CacheMode mode = v1::CACHE_MODE_COMPACT;
  int recent_window = 0;
  // Of a whole sequence: at least prompt and answer. Needed where runtime.sequence(mode), else 0.
  int64_t sequence_capacity = 0;
  // Segments that compress worse are attended to exactly.
  float max_relative_error = std::numeric_limits<float>::infinity();
  absl::Time deadline;
  // Called for each token as it is made. False: the caller is gone.
  std::function<bool(const SampledToken& token)> on_token;
  // Asked while the prompt is computed.
  std::function<bool()> cancelled;
};

// The longest prefix that the KV service holds is fetched layer by layer, and the model starts on
// layer 0 when that has arrived; what is missing, or lost on the way, is computed. Segments that
// are encoded as the sequence grows are stored in the service at the end, if it holds what they
// continue.
//
// With a profile of whole sequences the prefilled prefix (or the whole prompt) is fetched if the
// service holds it with that capacity; else the prompt is computed exactly and encoded here.
// Nothing is stored.
absl::StatusOr<v1::GenerateResult> RunDecode(const WorkerRuntime& runtime,
                                             const GenerateTask& task);

}  // namespace fourierkv
