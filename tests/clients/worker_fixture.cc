#include "tests/clients/worker_fixture.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <span>

#include "compute/model/host_engine.h"
#include "compute/model/llama_runner.h"
#include "compute/model/sampler.h"

namespace fourierkv {
namespace {

void MustBeOk(const absl::Status& status) {
  if (status.ok()) return;
  fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}

float Lead(const std::vector<float>& logits) {
  std::vector<float> sorted = logits;
  std::partial_sort(sorted.begin(), sorted.begin() + 2, sorted.end(), std::greater<>());
  return sorted[0] - sorted[1];
}

}  // namespace

TinyModel::TinyModel(int segment_tokens) {
  const std::filesystem::path source = std::string(FOURIERKV_TEST_DATA) + "/tiny-llama-f32";
  std::filesystem::copy(source / "model.safetensors", folder());
  nlohmann::json config = nlohmann::json::parse(std::ifstream(source / "config.json"));
  config.erase("eos_token_id");
  config["max_position_embeddings"] = 4096;
  folder_.Write("config.json", config.dump());
  CodecProfile profile = UniformProfile(geometry(), 0.5, 0.5, 8, 8);
  profile.segment_tokens = segment_tokens;
  folder_.Write("codec_profile.json", profile.ToJson());
}

std::vector<int32_t> RandomPrompt(uint32_t seed, int64_t tokens) {
  std::mt19937 rng(seed);
  std::vector<int32_t> prompt(tokens);
  for (int32_t& token : prompt) token = static_cast<int32_t>(rng() % 32);
  return prompt;
}

std::unique_ptr<FillableKvCache> LocalCache(const WorkerRuntime& runtime, v1::CacheMode mode,
                                            int64_t max_tokens, int recent_window,
                                            float error_bound) {
  const HostEngine engine({.model = runtime.model(),
                           .layout = runtime.layout(),
                           .backend = runtime.backend(),
                           .pool = runtime.pool(),
                           .segment_tokens = runtime.segment_tokens()});
  auto cache = engine.NewCache({.compact = mode == v1::CACHE_MODE_COMPACT,
                                .recent_window = recent_window,
                                .max_tokens = max_tokens,
                                .max_relative_error = error_bound});
  MustBeOk(cache.status());
  return *std::move(cache);
}

LocalRun GenerateLocally(const WorkerRuntime& runtime, v1::CacheMode mode,
                         const std::vector<int32_t>& prompt, int new_tokens, int recent_window,
                         float error_bound) {
  const auto cache = LocalCache(runtime, mode, static_cast<int64_t>(prompt.size()) + new_tokens,
                                recent_window, error_bound);
  LlamaRunner runner(runtime.model(), runtime.pool());
  ForwardOutput out;
  MustBeOk(Prefill(runner, prompt, *cache, &out));
  auto sampler = Sampler::Create({});
  MustBeOk(sampler.status());
  LocalRun run;
  run.smallest_lead = std::numeric_limits<float>::infinity();
  for (int i = 0; i < new_tokens; ++i) {
    if (i > 0) MustBeOk(runner.Forward({&run.tokens.back(), 1}, *cache, &out));
    run.smallest_lead = std::min(run.smallest_lead, Lead(out.logits));
    const auto token = sampler->Next(out.logits);
    MustBeOk(token.status());
    run.tokens.push_back(token->token);
    run.log_probabilities.push_back(token->log_probability);
  }
  return run;
}

std::vector<int32_t> ClearPrompt(const WorkerRuntime& runtime, v1::CacheMode mode, int64_t tokens,
                                 int new_tokens, int recent_window, float error_bound) {
  for (uint32_t seed = 1; seed < 200; ++seed) {
    std::vector<int32_t> prompt = RandomPrompt(seed, tokens);
    if (GenerateLocally(runtime, mode, prompt, new_tokens, recent_window, error_bound)
            .smallest_lead > 1e-3f) {
      return prompt;
    }
  }
  std::abort();
}

}  // namespace fourierkv
