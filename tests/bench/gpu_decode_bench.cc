// Decoding on a GPU end to end: tokens per second of a model of the shape of Llama-3.1-8B, with
// random weights, over dense and over compact caches in the same runner, and how many sequences fit
// in the memory that the dense ones take.
//
// Caches hold random keys and values, the compact ones encoded from such by the encoder that
// serves; sequences are of unequal length, as with continuous batching. A step is timed by the
// host: from the call until the chosen tokens are there. JSON goes to standard output, progress to
// standard error.

#include <cuda_profiler_api.h>
#include <cuda_runtime_api.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/cache/cuda/device_kv_cache.h"
#include "compute/cache/cuda/device_kv_pool.h"
#include "compute/codec/rotation.h"
#include "compute/model/cuda/cuda_llama_runner.h"
#include "compute/model/cuda/device_llama_model.h"
#include "kernels/random_fill.h"

namespace fourierkv {
namespace {

constexpr int kWindow = 1024;
constexpr double kGiga = 1e9;

struct Options {
  int layers = 32;
  int batch = 24;
  int64_t context = 32768;
  int steps = 40;
  int warmup = 8;
  bool fit = false;
  bool profile = false;
  uint64_t seed = 1;
};

void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << "gpu_decode_bench: " << status << "\n";
  std::exit(1);
}
template <typename T>
T Require(absl::StatusOr<T> result) {
  Require(result.status());
  return *std::move(result);
}
void Require(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::cerr << "gpu_decode_bench: " << cudaGetErrorString(error) << "\n";
  std::exit(1);
}

double Quantile(std::vector<double> values, double q) {
  const auto at = values.begin() + std::lround(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

ModelConfig Llama8B(const Options& options) {
  ModelConfig config;
  config.hidden_size = 4096;
  config.layers = options.layers;
  config.query_heads = 32;
  config.kv_heads = 8;
  config.head_dim = 128;
  config.intermediate_size = 14336;
  config.vocab_size = 128256;
  config.max_position_embeddings = std::max<int64_t>(131072, options.context + 4096);
  config.rope_theta = 500000;
  config.rms_norm_eps = 1e-5;
  return config;
}

// A random orthogonal matrix: Gram-Schmidt on a normal one.
std::vector<int16_t> RandomRotation(int n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> u(static_cast<size_t>(n) * n);
  for (double& value : u) value = normal(random);
  for (int i = 0; i < n; ++i) {
    double* const row = u.data() + i * n;
    for (int j = 0; j < i; ++j) {
      const double* const other = u.data() + j * n;
      double dot = 0;
      for (int d = 0; d < n; ++d) dot += row[d] * other[d];
      for (int d = 0; d < n; ++d) row[d] -= dot * other[d];
    }
    double norm = 0;
    for (int d = 0; d < n; ++d) norm += row[d] * row[d];
    for (int d = 0; d < n; ++d) row[d] /= std::sqrt(norm);
  }
  return QuantizeRotation(u);
}

struct NamedProfile {
  std::string name;
  CodecProfile profile;
};

std::vector<NamedProfile> Profiles(const KvGeometry& geometry, uint64_t seed) {
  CodecProfile plain = UniformProfile(geometry, 0.8, 0.5, 8, 4);
  CodecProfile rotated = UniformProfile(geometry, 0.8, 0.8, 8, 4);
  const std::vector<int16_t> rotation = RandomRotation(geometry.head_dim, seed);
  for (int layer = 0; layer < geometry.layers; ++layer) {
    for (int h = 0; h < geometry.kv_heads; ++h) {
      rotated.head(layer, h, Part::kV).rotation = rotation;
    }
  }
  return {{"K 80% V 50%, int4", plain}, {"K 80% V rotated 80%, int4", rotated}};
}

// Sequences of a pool with random content.
class Batch {
 public:
  Batch(std::shared_ptr<DeviceKvPool> pool, bool compact, const Options& options)
      : pool_(std::move(pool)), compact_(compact), options_(options) {}

  // False, with nothing added, if the pool has no room for one more.
  bool Add() {
    const int64_t segment = pool_->segment_tokens();
    // Spread over one segment, so that sequences do not all become due in the same step.
    const int64_t length =
        options_.context - 1 - static_cast<int64_t>(caches_.size()) * 37 % segment;
    const int64_t due = CompactSegments(length + options_.warmup + options_.steps);
    const int64_t blocks = (length + segment - 1) / segment + 1 - due;
    // The exact blocks of a sequence that has just become due are one more for a moment.
    const int64_t spare = compact_ ? 2 + static_cast<int64_t>(caches_.size()) / 16 : 0;
    if (reserved_blocks_ + blocks + spare > pool_->blocks() ||
        reserved_slots_ + due > pool_->slots()) {
      return false;
    }
    reserved_blocks_ += blocks;
    reserved_slots_ += due;
    caches_.push_back(Require(DeviceKvCache::Create(
        pool_, {.compact = compact_, .recent_window = kWindow, .max_tokens = 1 << 20})));
    lengths_.push_back(length);
    return true;
  }

  // Writes every sequence's tokens, a segment at a time, sealing as it goes.
  void Fill(CudaLlamaRunner& runner) {
    const int64_t segment = pool_->segment_tokens();
    std::vector<DeviceKvCache*> all;
    for (const auto& cache : caches_) all.push_back(cache.get());
    for (int64_t first = 0; first < options_.context; first += segment) {
      for (size_t i = 0; i < all.size(); ++i) {
        const int64_t tokens = std::min(segment, lengths_[i] - first);
        if (tokens <= 0) continue;
        Require(all[i]->Reserve(tokens));
        FillBlock(all[i]->blocks().back());
        Require(all[i]->Advance(tokens));
        // In small groups, so that few blocks are waiting to be sealed.
        if (i % 16 == 15) Seal(runner, std::span(all).subspan(i - 15, 16));
      }
      Seal(runner, all);
    }
    Require(cudaDeviceSynchronize());
  }

  std::vector<DecodeRow> Rows(int n) const {
    std::vector<DecodeRow> rows;
    for (int i = 0; i < n; ++i) rows.push_back({caches_[i].get(), static_cast<int32_t>(i)});
    return rows;
  }
  int size() const { return static_cast<int>(caches_.size()); }
  // What is read of the caches in one step of the first n sequences.
  double BytesRead(int n) const {
    double bytes = 0;
    for (int i = 0; i < n; ++i) {
      const CacheStats stats = caches_[i]->stats();
      bytes += static_cast<double>(stats.exact_bytes + stats.compact_bytes);
    }
    return bytes;
  }

 private:
  int64_t CompactSegments(int64_t length) const {
    if (!compact_) return 0;
    const int64_t segment = pool_->segment_tokens();
    return std::max<int64_t>(0, (length - kWindow - segment - 1) / segment);
  }
  void FillBlock(int32_t block) {
    const int64_t values = pool_->block_bytes() / pool_->geometry().layers / kKvDtypeBytes;
    for (int layer = 0; layer < pool_->geometry().layers; ++layer) {
      Require(kernels::LaunchFillRandom(pool_->block(layer, block, Part::kK), values, 1.0f,
                                        options_.seed + 7919 * ++filled_, nullptr));
    }
  }
  void Seal(CudaLlamaRunner& runner, std::span<DeviceKvCache* const> caches) {
    if (!compact_) return;
    Require(cudaDeviceSynchronize());
    Require(runner.Seal(caches));
  }

  const std::shared_ptr<DeviceKvPool> pool_;
  const bool compact_;
  const Options options_;
  int64_t reserved_blocks_ = 0, reserved_slots_ = 0;
  uint64_t filled_ = 0;
  std::vector<int64_t> lengths_;
  std::vector<std::unique_ptr<DeviceKvCache>> caches_;
};

struct StepTimes {
  double median_ms, fastest_ms, p90_ms;
};

StepTimes TimeSteps(CudaLlamaRunner& runner, std::vector<DecodeRow> rows, const Options& options) {
  std::vector<double> ms;
  DecodeOutput out;
  for (int step = 0; step < options.warmup + options.steps; ++step) {
    const bool profiled = options.profile && step == options.warmup;
    if (profiled) Require(cudaProfilerStart());
    const auto begun = std::chrono::steady_clock::now();
    Require(runner.DecodeStep(rows, &out));
    const std::chrono::duration<double, std::milli> taken =
        std::chrono::steady_clock::now() - begun;
    if (profiled) Require(cudaProfilerStop());
    if (step >= options.warmup) ms.push_back(taken.count());
    for (size_t i = 0; i < rows.size(); ++i) {
      if (out.choices[i].token < 0) Require(absl::InternalError("logits are not finite"));
      rows[i].token = out.choices[i].token;
    }
  }
  return {Quantile(ms, 0.5), Quantile(ms, 0), Quantile(ms, 0.9)};
}

nlohmann::json StepJson(const std::string& name, int sequences, const StepTimes& times,
                        double cache_bytes, double model_bytes) {
  const double tokens_per_second = 1000.0 * sequences / times.median_ms;
  std::fprintf(stderr, "%-28s %4d sequences: %7.3f ms a step (%.3f to %.3f), %8.0f tokens/s\n",
               name.c_str(), sequences, times.median_ms, times.fastest_ms, times.p90_ms,
               tokens_per_second);
  return {{"name", name},
          {"sequences", sequences},
          {"step_ms", times.median_ms},
          {"fastest_step_ms", times.fastest_ms},
          {"p90_step_ms", times.p90_ms},
          {"tokens_per_second", tokens_per_second},
          {"cache_gb_read", cache_bytes / kGiga},
          {"model_gb_read", model_bytes / kGiga},
          {"tb_per_second", (cache_bytes + model_bytes) / times.median_ms / 1e9}};
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options) {}

  nlohmann::json Run() {
    cudaDeviceProp device = {};
    Require(cudaGetDeviceProperties(&device, 0));
    const ModelConfig config = Llama8B(options_);
    std::fprintf(stderr, "making %d layers of random weights\n", config.layers);
    model_ = Require(DeviceLlamaModel::Random(config, options_.seed));
    // Of the embeddings only a few rows are read.
    model_bytes_ =
        static_cast<double>(model_->bytes()) - 2.0 * config.vocab_size * config.hidden_size;
    nlohmann::json runs = nlohmann::json::array();
    const double dense = RunDense(&runs);
    for (const NamedProfile& named : Profiles(config.Geometry(), options_.seed)) {
      RunCompact(named, dense, &runs);
    }
    return {{"device", device.name},
            {"layers", config.layers},
            {"context", options_.context},
            {"recent_window", kWindow},
            {"weights_gb", static_cast<double>(model_->bytes()) / kGiga},
            {"runs", runs}};
  }

 private:
  std::unique_ptr<CudaLlamaRunner> Runner(std::shared_ptr<DeviceKvPool> pool, int max_batch) {
    return Require(CudaLlamaRunner::Create(model_, std::move(pool),
                                           {.max_batch = max_batch, .chunk_tokens = 16}));
  }
  std::shared_ptr<const DeviceProfile> Profile(const CodecProfile& profile) {
    return Require(DeviceProfile::Create(std::make_shared<const ProfileLayout>(profile)));
  }

  // Milliseconds of a dense step.
  double RunDense(nlohmann::json* runs) {
    const auto profile = Profile(DefaultProfile(model_->config().Geometry()));
    const int64_t segment = profile->segment_tokens();
    const int64_t blocks = options_.batch * ((options_.context + segment - 1) / segment + 1);
    const auto pool = Require(DeviceKvPool::Create(profile, {static_cast<int32_t>(blocks), 0}));
    dense_bytes_ = pool->bytes();
    const auto runner = Runner(pool, options_.batch);
    {
      Options brief = options_;
      brief.context = 64;
      Batch batch(pool, false, brief);
      while (batch.size() < options_.batch) batch.Add();
      batch.Fill(*runner);
      const StepTimes times = TimeSteps(*runner, batch.Rows(options_.batch), options_);
      runs->push_back(StepJson("64 tokens, dense", options_.batch, times,
                               batch.BytesRead(options_.batch), model_bytes_));
    }
    Batch batch(pool, false, options_);
    while (batch.size() < options_.batch && batch.Add()) {
    }
    batch.Fill(*runner);
    const StepTimes times = TimeSteps(*runner, batch.Rows(batch.size()), options_);
    runs->push_back(
        StepJson("dense", batch.size(), times, batch.BytesRead(batch.size()), model_bytes_));
    return times.median_ms / batch.size();
  }

  void RunCompact(const NamedProfile& named, double dense_ms_per_token, nlohmann::json* runs) {
    const auto profile = Profile(named.profile);
    const int64_t segment = profile->segment_tokens();
    // For so many sequences the memory of the dense ones is divided.
    const int64_t blocks_each = 1 + kWindow / segment + 1;
    const int64_t slots_each = options_.context / segment - blocks_each + 2;
    const double bytes_each =
        static_cast<double>(profile->geometry().DenseBytes(segment)) * (blocks_each + 0.1) +
        static_cast<double>(DeviceKvPool::SlotBytes(*profile) * slots_each);
    const int most = options_.fit ? static_cast<int>(static_cast<double>(dense_bytes_) / bytes_each)
                                  : options_.batch;
    const auto blocks = static_cast<int32_t>(most * blocks_each + most / 10 + 32);
    const auto pool =
        Require(DeviceKvPool::Create(profile, {blocks, static_cast<int32_t>(most * slots_each)}));
    const auto runner = Runner(pool, std::min(most, 1024));
    Batch batch(pool, true, options_);
    while (batch.size() < most && batch.Add()) {
    }
    std::fprintf(stderr, "%s: filling %d sequences in %.1f GB\n", named.name.c_str(), batch.size(),
                 static_cast<double>(pool->bytes()) / kGiga);
    batch.Fill(*runner);
    for (const int n : {std::min(options_.batch, batch.size()), batch.size()}) {
      const StepTimes times = TimeSteps(*runner, batch.Rows(n), options_);
      nlohmann::json run = StepJson(named.name, n, times, batch.BytesRead(n), model_bytes_);
      run["bits_per_element"] = profile->layout().BitsPerElement();
      run["speed_up"] = dense_ms_per_token * n / times.median_ms;
      run["pool_gb"] = static_cast<double>(pool->bytes()) / kGiga;
      run["sequences_against_dense"] = static_cast<double>(batch.size()) / options_.batch *
                                       static_cast<double>(dense_bytes_) /
                                       static_cast<double>(pool->bytes());
      std::fprintf(stderr,
                   "  %.2f times the tokens/s of dense; sequences in its memory: %.1f times\n",
                   run["speed_up"].get<double>(), run["sequences_against_dense"].get<double>());
      runs->push_back(std::move(run));
      if (n == batch.size()) break;
    }
  }

  const Options options_;
  std::shared_ptr<const DeviceLlamaModel> model_;
  double model_bytes_ = 0;
  int64_t dense_bytes_ = 0;
};

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Decode tokens per second of an 8B-shaped model, dense against compact caches");
  app.add_option("--layers", options.layers, "layers of the model")->check(CLI::Range(1, 512));
  app.add_option("--batch", options.batch, "sequences decoded together")
      ->check(CLI::Range(1, 1024));
  app.add_option("--context", options.context, "tokens of a sequence")
      ->check(CLI::Range(4096, 1 << 20));
  app.add_option("--steps", options.steps, "timed steps")->check(CLI::Range(1, 100000));
  app.add_option("--warmup", options.warmup, "steps before these")->check(CLI::Range(2, 1000));
  app.add_option("--seed", options.seed, "of weights and caches");
  app.add_flag("--fit", options.fit,
               "fill the memory of the dense caches with compact ones, and decode all of them");
  app.add_flag("--profile", options.profile,
               "have one step of each run profiled (ncu --profile-from-start off)");
  CLI11_PARSE(app, argc, argv);
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::cerr << "gpu_decode_bench: no GPU on this machine\n";
    return 1;
  }
  std::cout << Bench(options).Run().dump(2) << "\n";
  return 0;
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) { return fourierkv::Main(argc, argv); }
