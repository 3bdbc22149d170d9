// A small random model that workers can load, and what it generates without any service.

#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "clients/worker/worker_runtime.h"
#include "compute/cache/fillable_kv_cache.h"
#include "tests/compute/model/temp_folder.h"

namespace fourierkv {

// Two layers, two KV heads of 8 channels, 32 tokens, a context of 4096; never ends a sequence by
// itself. Its folder has a codec_profile.json with half of the channels spectral.
class TinyModel {
 public:
  explicit TinyModel(int segment_tokens = 128);

  const std::string& folder() const { return folder_.path(); }
  static KvGeometry geometry() { return {.layers = 2, .kv_heads = 2, .head_dim = 8}; }

 private:
  TempFolder folder_;
};

std::vector<int32_t> RandomPrompt(uint32_t seed, int64_t tokens);

// The cache that the host's engine has in that mode, for at most `max_tokens`. Aborts on errors.
std::unique_ptr<FillableKvCache> LocalCache(
    const WorkerRuntime& runtime, v1::CacheMode mode, int64_t max_tokens, int recent_window,
    float error_bound = std::numeric_limits<float>::infinity());

struct LocalRun {
  std::vector<int32_t> tokens;
  std::vector<double> log_probabilities;
  // By how much the likeliest token led, at least: what rounding must not exceed.
  float smallest_lead = 0;
};

// Greedily, with a cache of the runtime's that no service ever saw. Aborts on errors.
LocalRun GenerateLocally(const WorkerRuntime& runtime, v1::CacheMode mode,
                         const std::vector<int32_t>& prompt, int new_tokens, int recent_window,
                         float error_bound = std::numeric_limits<float>::infinity());

// A prompt whose greedy continuation does not hang on rounding.
std::vector<int32_t> ClearPrompt(const WorkerRuntime& runtime, v1::CacheMode mode, int64_t tokens,
                                 int new_tokens, int recent_window,
                                 float error_bound = std::numeric_limits<float>::infinity());

}  // namespace fourierkv
