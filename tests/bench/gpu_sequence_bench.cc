// Speed of attention in the published form on a GPU, beside what dense attention would take at the
// memory's speed and, for small cases, beside the published method (rebuild_attention.h). Random
// data; one line of JSON a case.

#include <cuda_runtime_api.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <numbers>
#include <random>
#include <string>
#include <vector>

#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_buffer.h"
#include "kernels/sequence_attention.h"
#include "tests/bench/gpu_timing.h"
#include "tests/bench/rebuild_attention.h"
#include "tests/kernels/sequence_batch.h"

namespace fourierkv {
namespace {

// More than a cache holds is read before anything is read again.
constexpr int64_t kRotatedBytes = int64_t{256} << 20;
constexpr double kDenseBytesPerSecond = 4.49e12;  // of dense attention on an H200, measured

struct Options {
  std::vector<int> batches = {1, 8, 32};
  std::vector<int64_t> contexts = {4096, 32768, 131072};
  // Layer 15 of the published lists for Llama-3.1-8B.
  std::vector<int> k_spectral = {83, 116, 117, 96, 122, 88, 116, 81};
  std::vector<int> v_spectral = {120, 128, 110, 111, 8, 122, 128, 92};
  int head_dim = 128;
  int group = 4;
  int max_new = 256;
  int repeat = 30;
  int64_t rebuild_tokens = 0;  // of batch * context at most
};

// One launch's inputs: several of them are used in turn.
struct Input {
  SequenceBatch batch;
  kernels::SequenceAttentionParams params = {};
};

absl::StatusOr<DeviceBuffer> UploadFloats(const std::vector<float>& values) {
  return DeviceBuffer::CopyOf(values.data(), values.size() * sizeof(float));
}

// Bytes a second of a copy within device memory, reading and writing both counted.
absl::StatusOr<double> CopyBandwidth() {
  constexpr size_t kBytes = size_t{1} << 30;
  absl::StatusOr<DeviceBuffer> from = DeviceBuffer::Create(kBytes);
  if (!from.ok()) return from.status();
  absl::StatusOr<DeviceBuffer> to = DeviceBuffer::Create(kBytes);
  if (!to.ok()) return to.status();
  const absl::StatusOr<LaunchTiming> timing = TimeLaunches(
      [&](int64_t, cudaStream_t stream) {
        return cudaMemcpyAsync(to->data(), from->data(), kBytes, cudaMemcpyDeviceToDevice, stream);
      },
      1, 10);
  if (!timing.ok()) return timing.status();
  return 2e6 * kBytes / timing->stream_us;
}

class Bench {
 public:
  Bench(const Options& options, double copy_bandwidth)
      : o_(options),
        copy_bandwidth_(copy_bandwidth),
        layout_(SequenceProfile(options.head_dim, {}, 16, options.k_spectral, options.v_spectral,
                                random_)) {}

  absl::Status CheckProfile() const { return layout_.profile().Validate(); }

  absl::StatusOr<nlohmann::json> Run(int batch, int64_t context) {
    const SequencePayloads sequence =
        RandomSequence(k(), v(), context, context + o_.max_new, KvDtype::kBf16, random_);
    const std::vector<const SequencePayloads*> sequences(batch, &sequence);
    const int query_heads = static_cast<int>(o_.k_spectral.size()) * o_.group;
    std::normal_distribution<float> normal;
    std::vector<float> q(size_t{1} * batch * query_heads * o_.head_dim);
    for (float& x : q) x = normal(random_);
    absl::StatusOr<DeviceBuffer> device_q = UploadFloats(q);
    if (!device_q.ok()) return device_q.status();
    absl::StatusOr<DeviceBuffer> out = DeviceBuffer::Create(q.size() * sizeof(float));
    if (!out.ok()) return out.status();

    std::vector<Input> inputs;
    DeviceBuffer workspace;
    for (int64_t bytes = 0; inputs.empty() || bytes < kRotatedBytes;) {
      absl::StatusOr<SequenceBatch> made = SequenceBatch::Create(k(), v(), sequences, 64);
      if (!made.ok()) return made.status();
      Input input = {*std::move(made)};
      kernels::SequenceAttentionParams& p = input.params;
      p.query_heads = query_heads;
      p.dtype = kernels::ElementType::kBf16;
      p.float_io = true;
      p.scale = 1 / std::sqrt(static_cast<float>(o_.head_dim));
      p.q = device_q->data();
      p.out = out->data();
      input.batch.Describe(&p);
      if (inputs.empty()) {
        const int64_t size =
            std::max(kernels::SequenceAttentionWorkspace(p), RebuildAttentionWorkspace(p));
        absl::StatusOr<DeviceBuffer> room = DeviceBuffer::Create(size);
        if (!room.ok()) return room.status();
        workspace = *std::move(room);
      }
      p.workspace = workspace.data();
      p.workspace_bytes = static_cast<int64_t>(workspace.size());
      bytes += input.batch.bytes();
      inputs.push_back(std::move(input));
    }

    const int sets = static_cast<int>(inputs.size());
    const absl::StatusOr<LaunchTiming> timing = TimeLaunches(
        [&](int64_t i, cudaStream_t stream) {
          return kernels::LaunchSequenceAttention(inputs[i % sets].params, stream);
        },
        sets, o_.repeat);
    if (!timing.ok()) return timing.status();
    const absl::StatusOr<double> error = Error(sequence, q, *out);
    if (!error.ok()) return error.status();

    const double bytes = static_cast<double>(inputs[0].batch.bytes());
    const double dense_bytes =
        static_cast<double>(k().geometry.PartBytes(context)) * 2 * static_cast<double>(batch);
    const double dense_us = 1e6 * dense_bytes / kDenseBytesPerSecond;
    nlohmann::json result = {
        {"batch", batch},
        {"context", context},
        {"us", timing->graph_us},
        {"us_stream", timing->stream_us},
        {"bytes", bytes},
        {"bytes_of_dense", bytes / dense_bytes},
        {"tb_per_s", 1e-6 * bytes / timing->graph_us},
        {"of_copy_bandwidth", 1e6 * bytes / timing->graph_us / copy_bandwidth_},
        {"dense_us_at_4.49_tb_per_s", dense_us},
        {"speed_up", dense_us / timing->graph_us},
        {"relative_error", *error},
        {"input_sets", sets}};
    if (batch * context <= o_.rebuild_tokens) {
      const absl::Status status = Rebuild(inputs[0].params, sequence, q, *out, result);
      if (!status.ok()) return status;
    }
    return result;
  }

 private:
  const SequencePart& k() const { return layout_.part(0, Part::kK); }
  const SequencePart& v() const { return layout_.part(0, Part::kV); }

  // ||out - expected|| / ||expected|| of the first query head of each KV head of the last sequence.
  absl::StatusOr<double> Error(const SequencePayloads& sequence, const std::vector<float>& q,
                               const DeviceBuffer& out) const {
    std::vector<float> got(q.size());
    if (const absl::Status s = out.CopyTo(got.data(), got.size() * sizeof(float)); !s.ok()) {
      return s;
    }
    const auto kv_heads = static_cast<int>(o_.k_spectral.size());
    const size_t last = q.size() - size_t{1} * kv_heads * o_.group * o_.head_dim;
    double error = 0, energy = 0;
    for (int h = 0; h < kv_heads; h += kv_heads - 1) {
      const size_t first = last + size_t{1} * h * o_.group * o_.head_dim;
      const HeadAttention expected = ReferenceAttention(
          k(), v(), sequence, KvDtype::kBf16, h, 1 / std::sqrt(static_cast<double>(o_.head_dim)),
          std::span(q).subspan(first, o_.head_dim));
      for (int d = 0; d < o_.head_dim; ++d) {
        error += std::pow(got[first + d] - expected.out[d], 2);
        energy += std::pow(expected.out[d], 2);
      }
      if (kv_heads == 1) break;
    }
    return std::sqrt(error / energy);
  }

  absl::Status Rebuild(kernels::SequenceAttentionParams params, const SequencePayloads& sequence,
                       const std::vector<float>& q, const DeviceBuffer& out,
                       nlohmann::json& result) const {
    const int64_t period = k().scope.Period(sequence.capacity);
    std::vector<float> circle;
    for (int64_t i = 0; i < period; ++i) {
      const double angle =
          2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(period);
      circle.push_back(static_cast<float>(std::cos(angle)));
      circle.push_back(static_cast<float>(std::sin(angle)));
    }
    const absl::StatusOr<DeviceBuffer> device_circle = UploadFloats(circle);
    if (!device_circle.ok()) return device_circle.status();
    const std::vector<const float2*> circles(params.batch, device_circle->as<float2>());
    const absl::StatusOr<DeviceBuffer> table =
        DeviceBuffer::CopyOf(circles.data(), circles.size() * sizeof(const float2*));
    if (!table.ok()) return table.status();
    const auto launch = [&](cudaStream_t stream) {
      return LaunchRebuildAttention(params, table->as<const float2*>(), stream);
    };
    absl::StatusOr<double> us = Elapsed(nullptr, launch);
    if (us.ok()) us = Elapsed(nullptr, launch);  // the first is a warm-up
    if (!us.ok()) return us.status();
    const absl::StatusOr<double> error = Error(sequence, q, out);
    if (!error.ok()) return error.status();
    result["rebuild_us"] = *us;
    result["rebuild_relative_error"] = *error;
    return absl::OkStatus();
  }

  const Options o_;
  const double copy_bandwidth_;
  std::mt19937 random_{1};
  const SequenceLayout layout_;
};

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "gpu_sequence_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}

int Run(const Options& o) {
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices);
      error != cudaSuccess || devices == 0) {
    return Fail(
        CudaStatus(error == cudaSuccess ? cudaErrorNoDevice : error, "this benchmark needs a GPU"));
  }
  const absl::StatusOr<double> bandwidth = CopyBandwidth();
  if (!bandwidth.ok()) return Fail(bandwidth.status());
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, 0); error != cudaSuccess) {
    return Fail(CudaStatus(error, "reading the device's properties"));
  }
  const nlohmann::json device = {{"device", properties.name},
                                 {"copy_tb_per_s", 1e-12 * *bandwidth},
                                 {"k_spectral", o.k_spectral},
                                 {"v_spectral", o.v_spectral}};
  std::printf("%s\n", device.dump().c_str());
  Bench bench(o, *bandwidth);
  if (const absl::Status status = bench.CheckProfile(); !status.ok()) return Fail(status);
  for (const int batch : o.batches) {
    for (const int64_t context : o.contexts) {
      const absl::StatusOr<nlohmann::json> result = bench.Run(batch, context);
      if (!result.ok()) return Fail(result.status());
      std::printf("%s\n", result->dump().c_str());
      std::fflush(stdout);
    }
  }
  return 0;
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  fourierkv::Options o;
  CLI::App app{
      "Times attention in the published form (1024 states) on the GPU. JSON, one line a case."};
  app.add_option("--batch", o.batches, "Sequences")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--context", o.contexts, "Tokens of each")
      ->check(CLI::Range(2049, 1 << 20))
      ->capture_default_str();
  app.add_option("--k-spectral", o.k_spectral, "Spectral channels of K of each KV head")
      ->check(CLI::Range(0, 128))
      ->capture_default_str();
  app.add_option("--v-spectral", o.v_spectral, "The same of V, as many")
      ->check(CLI::Range(0, 128))
      ->capture_default_str();
  app.add_option("--group", o.group, "Query heads to a KV head")
      ->check(CLI::Range(1, 16))
      ->capture_default_str();
  app.add_option("--max-new", o.max_new, "Tokens that a sequence may grow by")
      ->check(CLI::Range(0, 65536))
      ->capture_default_str();
  app.add_option("--repeat", o.repeat, "Timed runs, at most")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--rebuild-tokens", o.rebuild_tokens,
                 "Time the published method, too, where batch * context is at most this")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (o.k_spectral.size() != o.v_spectral.size() || o.k_spectral.size() > 256) {
    std::fprintf(stderr,
                 "gpu_sequence_bench: --k-spectral and --v-spectral must have as many numbers as "
                 "there are KV heads, at most 256\n");
    return 1;
  }
  return fourierkv::Run(o);
}
