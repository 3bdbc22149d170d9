// Attention of one new token directly on compact caches, on a GPU: microseconds, bytes a second and
// error of LaunchFourierAttention for batches, contexts and codec profiles. One layer of
// Llama-3.1-8B's shape. JSON goes to standard output, a line for each row to standard error.
//
// Payloads are encoded from random keys and values: a pool of 127 segments for each profile, copied
// to distinct, shuffled addresses for every segment of every sequence. Launches go through several
// such sets of caches in turn, 1 GiB or more in all, so that the L2 holds nothing of the next one.
//
// tests/bench/gpu_attention.py prints these beside dense attention. For a profiler:
//
//   ncu --clock-control none --kernel-name regex:Fourier --launch-count 1 --set full
//       build/cuda/bin/gpu_attention_bench --case 32x32k:int4-9.7x --repeat 1

#include <cuda_runtime_api.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "compute/backend/cuda/cuda_status.h"
#include "compute/backend/cuda/device_buffer.h"
#include "tests/bench/gpu_attention_run.h"
#include "tests/bench/gpu_probes.h"

namespace fourierkv {
namespace {

struct Options {
  bool quick = false;
  std::vector<std::string> cases;
  int repeat = 15;
  uint64_t seed = 0;
};

// Bytes per second of device memory.
struct MemoryRates {
  double copy = 0;  // bytes read plus bytes written
  double read = 0;
};

absl::Status CheckDevice(nlohmann::json* report) {
  int devices = 0;
  absl::Status status = CudaStatus(cudaGetDeviceCount(&devices),
                                   "this needs an NVIDIA GPU and its driver, and found none");
  if (!status.ok()) return status;
  cudaDeviceProp properties = {};
  status = CudaStatus(cudaGetDeviceProperties(&properties, 0), "asking what the GPU is");
  if (!status.ok()) return status;
  (*report)["device"] = properties.name;
  (*report)["multiprocessors"] = properties.multiProcessorCount;
  (*report)["l2_bytes"] = properties.l2CacheSize;
  return absl::OkStatus();
}

absl::StatusOr<MemoryRates> MeasureMemory(int repeat) {
  constexpr int64_t kBytes = int64_t{2} << 30;
  absl::StatusOr<DeviceBuffer> source = DeviceBuffer::Create(kBytes);
  if (!source.ok()) return source.status();
  absl::StatusOr<DeviceBuffer> target = DeviceBuffer::Create(kBytes);
  if (!target.ok()) return target.status();
  const absl::Status cleared =
      CudaStatus(cudaMemset(source->data(), 1, kBytes), "clearing 2 GiB of device memory");
  if (!cleared.ok()) return cleared;
  const absl::StatusOr<LaunchTiming> copy = TimeLaunches(
      [&](int64_t, cudaStream_t stream) {
        return LaunchCopyProbe(target->data(), source->data(), kBytes, stream);
      },
      1, repeat);
  if (!copy.ok()) return copy.status();
  const absl::StatusOr<LaunchTiming> read = TimeLaunches(
      [&](int64_t, cudaStream_t stream) {
        return LaunchReadProbe(source->data(), kBytes, target->as<uint32_t>(), stream);
      },
      1, repeat);
  if (!read.ok()) return read.status();
  return MemoryRates{2 * kBytes / copy->graph_us * 1e6, kBytes / read->graph_us * 1e6};
}

nlohmann::json Row(const AttentionCase& c, const AttentionResult& result,
                   const MemoryRates& rates) {
  const double rate = result.bytes / result.timing.graph_us * 1e6;
  nlohmann::json row = {{"case", c.Name()},
                        {"batch", c.batch},
                        {"tokens", c.tokens},
                        {"profile", c.profile},
                        {"exact_regions", c.exact},
                        {"microseconds", result.timing.graph_us},
                        {"stream_microseconds", result.timing.stream_us},
                        {"launches", result.timing.launches},
                        {"replays", result.timing.replays},
                        {"sets", result.sets},
                        {"bytes", result.bytes},
                        {"dense_bytes", c.DenseBytes()},
                        {"bytes_per_second", rate}};
  if (rates.copy > 0) {
    row["fraction_of_copy"] = rate / rates.copy;
    row["fraction_of_read"] = rate / rates.read;
  }
  if (result.error) row["relative_error"] = *result.error;
  if (result.rounded_error) row["relative_error_rounded"] = *result.rounded_error;
  return row;
}

absl::StatusOr<std::vector<AttentionCase>> SelectCases(const Options& options) {
  if (options.cases.empty()) return StandardAttentionCases(options.quick);
  std::vector<AttentionCase> cases;
  for (const std::string& text : options.cases) {
    absl::StatusOr<AttentionCase> parsed = ParseAttentionCase(text);
    if (!parsed.ok()) return parsed.status();
    cases.push_back(*std::move(parsed));
  }
  return cases;
}

absl::Status RunBench(const Options& options, nlohmann::json* report) {
  const absl::StatusOr<std::vector<AttentionCase>> cases = SelectCases(options);
  if (!cases.ok()) return cases.status();
  if (absl::Status status = CheckDevice(report); !status.ok()) return status;
  MemoryRates rates;
  if (options.repeat > 1) {
    const absl::StatusOr<MemoryRates> measured = MeasureMemory(options.repeat);
    if (!measured.ok()) return measured.status();
    rates = *measured;
    (*report)["copy_bytes_per_second"] = rates.copy;
    (*report)["read_bytes_per_second"] = rates.read;
    std::fprintf(stderr, "copy %.2f TB/s (read and written), read %.2f TB/s\n", rates.copy / 1e12,
                 rates.read / 1e12);
  }
  AttentionRunner runner(options.seed);
  nlohmann::json rows = nlohmann::json::array();
  nlohmann::json skipped = nlohmann::json::object();
  for (const AttentionCase& c : *cases) {
    const absl::StatusOr<AttentionResult> result = runner.Run(c, options.repeat);
    if (absl::IsResourceExhausted(result.status())) {
      const std::string why(result.status().message());
      std::fprintf(stderr, "%-26s skipped: %s\n", c.Name().c_str(), why.c_str());
      skipped[c.Name()] = why;
      continue;
    }
    if (!result.ok()) {
      return absl::Status(result.status().code(),
                          c.Name() + ": " + std::string(result.status().message()));
    }
    rows.push_back(Row(c, *result, rates));
    std::fprintf(stderr, "%-26s %9.1f us (launched singly %9.1f)  %5.2f TB/s  error %.1e, %.1e\n",
                 c.Name().c_str(), result->timing.graph_us, result->timing.stream_us,
                 result->bytes / result->timing.graph_us / 1e6, result->error.value_or(0),
                 result->rounded_error.value_or(0));
  }
  (*report)["rows"] = std::move(rows);
  (*report)["skipped"] = std::move(skipped);
  return absl::OkStatus();
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  fourierkv::Options options;
  CLI::App app("Attention directly on compact caches, on a GPU: speed and error; JSON");
  app.add_flag("--quick", options.quick, "only four sizes of every profile");
  app.add_option("--case", options.cases,
                 "only this one, like 32x32k:int4-9.7x+exact: BATCHxTOKENS:PROFILE, PROFILE one of "
                 "plain-dense, bf16, int8, int4-9.7x, int4-15x; +exact: sink and recent window as "
                 "received; may be repeated");
  app.add_option("--repeat", options.repeat,
                 "timed replays; 1: one launch without warm-up or check, for a profiler")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of queries and of the caches' places in memory")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  nlohmann::json report;
  if (const absl::Status status = fourierkv::RunBench(options, &report); !status.ok()) {
    std::cerr << "gpu_attention_bench: " << status.message() << "\n";
    return 1;
  }
  std::cout << report.dump(1) << "\n";
  return 0;
}
