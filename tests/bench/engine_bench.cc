// Tokens per second of what workers run: a model's prompts and greedy decoding, by the engine of
// the host with attention on each backend, and by each device's own engine. Sequences have threads
// of their own, as requests to a worker have. JSON goes to standard output, progress to standard
// error.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "compute/codec/profile.h"
#include "compute/model/engine_registry.h"
#include "compute/model/host_engine.h"
#include "compute/model/sampler.h"

namespace fourierkv {
namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::string model = "tests/data/needle-4m";
  std::string device = "cpu";
  int64_t tokens = 8000;
  int new_tokens = 128;
  std::vector<int> sequences = {1, 8};
  int recent_window = 1024;
  int threads = 0;
  bool exact = false;
  uint64_t seed = 1;
};

void Check(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "engine_bench: %s\n", std::string(status.message()).c_str());
  std::exit(1);
}
template <typename T>
T Check(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

double SecondsSince(Clock::time_point begun) {
  return std::chrono::duration<double>(Clock::now() - begun).count();
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {
    engine_.model = Check(LlamaModel::Load(options.model));
    const std::string file = options.model + "/codec_profile.json";
    engine_.layout = std::make_shared<const ProfileLayout>(
        std::filesystem::exists(file) ? Check(CodecProfile::FromFile(file))
                                      : DefaultProfile(engine_.model->config().Geometry()));
    engine_.pool = std::make_shared<ThreadPool>(options.threads);
    engine_.segment_tokens = engine_.layout->profile().segment_tokens;
  }

  nlohmann::json Run() {
    nlohmann::json runs = nlohmann::json::array();
    for (const std::string& device : options_.device == "cpu"
                                         ? std::vector<std::string>{"cpu"}
                                         : std::vector<std::string>{"cpu", options_.device}) {
      const std::unique_ptr<ComputeBackend> backend =
          Check(CreateBackend(device, options_.threads));
      engine_.backend = backend.get();
      HostEngine host(engine_);
      WarmUp(host);
      for (const int n : options_.sequences) runs.push_back(RunEngine(host, device, n));
      if (device == "cpu") continue;
      const std::unique_ptr<ModelEngine> own = Check(CreateEngine(device, engine_));
      WarmUp(*own);
      for (const int n : options_.sequences) runs.push_back(RunEngine(*own, device, n));
    }
    return {{"model", options_.model},
            {"prompt_tokens", options_.tokens},
            {"new_tokens", options_.new_tokens},
            {"recent_window", options_.recent_window},
            {"cache", options_.exact ? "exact" : "compact"},
            {"runs", runs}};
  }

 private:
  // Kernels are loaded when they are first needed.
  void WarmUp(ModelEngine& engine) {
    const auto sequence = Check(engine.NewSequence({.compact = !options_.exact,
                                                    .recent_window = options_.recent_window,
                                                    .max_tokens = options_.tokens}));
    Check(sequence->Prefill(std::vector<int32_t>(options_.tokens, 1), nullptr));
  }

  // All sequences have their prompts before any of them decodes.
  nlohmann::json RunEngine(ModelEngine& engine, const std::string& backend, int sequences) {
    const int vocab = engine_.model->config().vocab_size;
    std::vector<std::unique_ptr<ModelSequence>> all;
    std::vector<int32_t> first;
    const auto begun = Clock::now();
    for (int i = 0; i < sequences; ++i) {
      all.push_back(Check(
          engine.NewSequence({.compact = !options_.exact,
                              .recent_window = options_.recent_window,
                              .max_tokens = options_.tokens + kWarmUp + options_.new_tokens})));
      std::mt19937_64 random(options_.seed + i);
      std::vector<int32_t> prompt(options_.tokens);
      for (int32_t& token : prompt) token = static_cast<int32_t>(random() % vocab);
      std::vector<float> logits;
      Check(all.back()->Prefill(prompt, &logits));
      first.push_back(
          static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    }
    const double prefill_seconds = SecondsSince(begun);
    Decode(all, first, kWarmUp);
    const auto decoding = Clock::now();
    Decode(all, first, options_.new_tokens);
    const double tokens_per_second = sequences * options_.new_tokens / SecondsSince(decoding);
    const double prompt_tokens_per_second =
        static_cast<double>(sequences * options_.tokens) / prefill_seconds;
    std::fprintf(stderr,
                 "engine %-5s backend %-5s %3d sequences: prompts %9.0f tokens/s, decoding %9.0f "
                 "tokens/s\n",
                 engine.name(), backend.c_str(), sequences, prompt_tokens_per_second,
                 tokens_per_second);
    return {{"engine", engine.name()},
            {"backend", backend},
            {"sequences", sequences},
            {"prompt_tokens_per_second", prompt_tokens_per_second},
            {"tokens_per_second", tokens_per_second}};
  }

  // Replaces each sequence's token by the last one that it made.
  static void Decode(std::vector<std::unique_ptr<ModelSequence>>& all, std::vector<int32_t>& tokens,
                     int steps) {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < all.size(); ++i) {
      threads.emplace_back([&, i] {
        Sampler sampler = Check(Sampler::Create({}));
        for (int step = 0; step < steps; ++step) {
          tokens[i] = Check(all[i]->Step(tokens[i], sampler)).token;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  static constexpr int kWarmUp = 8;  // steps

  const Options options_;
  EngineOptions engine_;
};

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Tokens per second of a model on the engines that workers run");
  app.add_option("--model", options.model, "folder of the model")->capture_default_str();
  app.add_option("--device", options.device, "cpu, or a device to compare with it")
      ->capture_default_str();
  app.add_option("--tokens", options.tokens, "tokens of a prompt")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--new", options.new_tokens, "tokens decoded by each sequence")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--sequences", options.sequences, "numbers of sequences at a time")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--recent-window", options.recent_window, "tokens that stay exact")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "threads of the host; 0: all")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_flag("--exact", options.exact, "exact caches instead of compact ones");
  app.add_option("--seed", options.seed, "of the prompts")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::cout << Bench(options).Run().dump(2) << "\n";
  return 0;
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) { return fourierkv::Main(argc, argv); }
