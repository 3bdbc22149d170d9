// Computes the KV cache of a prompt and stores it.

#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "clients/worker/worker_runtime.h"
#include "fourierkv/v1/prefill_service.pb.h"

namespace fourierkv {

struct PrefillTask {
  std::vector<int32_t> tokens;
  v1::CacheMode mode = v1::CACHE_MODE_COMPACT;
  int recent_window = 0;
  // Segments that compress worse are stored exactly, too.
  float max_relative_error = std::numeric_limits<float>::infinity();
  v1::SegmentForm exact_form = v1::SEGMENT_FORM_EXACT;  // or LOSSLESS: how exact data is stored
  // Or ARCHIVED: how compressed data is stored. That needs a profile with an archive section.
  v1::SegmentForm compressed_form = v1::SEGMENT_FORM_COMPACT;
  int64_t max_new_tokens = 0;  // room in a whole sequence
  // Send what is only kept compact as this worker has encoded it, instead of exactly for the
  // service to encode: the same is stored, a window later. Not with a bound on errors, nor for
  // archives.
  bool encode_here = false;
  absl::Time deadline;
  std::function<void(int64_t done, int64_t total)> on_progress;
  std::function<bool()> cancelled;
};

// What the KV service holds of the prompt is fetched instead of computed; the rest is computed in
// chunks, and each layer's K and V of a chunk are sent while the next layer is computed. Every
// chunk is committed on its own, so an interrupted prefill goes on where it stopped when it is
// asked for again.
absl::StatusOr<v1::PrefillResult> RunPrefill(const WorkerRuntime& runtime, const PrefillTask& task);

}  // namespace fourierkv
