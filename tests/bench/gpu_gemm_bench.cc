// Matrix products of a decode step of a model of the shape of Llama-3.1-8B, by the number of rows:
// ours for few rows against cuBLAS. Weights of several layers take turns, so that none is in a
// cache; products overlap as they do in a step. A table goes to standard error, JSON to standard
// output.

#include <cuda_runtime_api.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"
#include "compute/model/cuda/gemm.h"
#include "kernels/llama_ops.h"
#include "kernels/random_fill.h"
#include "kernels/skinny_gemm.h"
#include "tests/bench/gpu_timing.h"

namespace fourierkv {
namespace {

void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << "gpu_gemm_bench: " << status << "\n";
  std::exit(1);
}
template <typename T>
T Require(absl::StatusOr<T> result) {
  Require(result.status());
  return *std::move(result);
}

struct Product {
  const char* name;
  int64_t out, in;
  GemmOutput output;
};

constexpr int64_t kHidden = 4096, kInner = 14336;
constexpr Product kLayer[] = {{"q, k, v", 6144, kHidden, GemmOutput::kFloat},
                              {"o", kHidden, kHidden, GemmOutput::kAddFloat},
                              {"gate and up", 2 * kInner, kHidden, GemmOutput::kSiluMul},
                              {"down", kHidden, kInner, GemmOutput::kAddFloat}};
constexpr Product kLogits = {"logits", 128256, kHidden, GemmOutput::kFloat};
constexpr int kLayers = 8;

DeviceBuffer Random(int64_t count, float deviation, uint64_t seed) {
  DeviceBuffer buffer = Require(DeviceBuffer::Create(static_cast<size_t>(count) * 2));
  if (kernels::LaunchFillRandom(buffer.as<uint16_t>(), count, deviation, seed, nullptr) !=
      cudaSuccess) {
    Require(absl::InternalError("filling memory"));
  }
  return buffer;
}

class Bench {
 public:
  explicit Bench(int most_rows)
      : x_(Random(most_rows * kInner, 1, 1)),
        y_(Require(DeviceBuffer::Create(most_rows * kLogits.out * 4))),
        gate_up_(Require(DeviceBuffer::Create(most_rows * kInner * 4))) {
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const Product& p : kLayer) {
        weights_.push_back(Random(p.out * p.in, 0.02f, 2 + weights_.size()));
      }
    }
    logits_ = Random(kLogits.out * kLogits.in, 0.02f, 1000);
  }

  // Microseconds of each product, of a layer's one behind the other, and of logits.
  nlohmann::json Run(int rows, bool ours) {
    ours_ = ours;
    gemm_ = Require(Gemm::Create(ours));
    nlohmann::json json = {{"rows", rows}, {"ours", ours}};
    std::fprintf(stderr, "%4d rows, %-6s", rows, ours ? "ours" : "cuBLAS");
    constexpr int kProducts = std::size(kLayer);
    for (int p = 0; p < kProducts; ++p) {
      Time(kLayer[p].name, kLayer[p].out * kLayer[p].in, json, [&](int64_t i, cudaStream_t s) {
        return Enqueue(kLayer[p], rows, weights_[i % kLayers * kProducts + p], s);
      });
    }
    int64_t all = 0;
    for (const Product& p : kLayer) all += p.out * p.in;
    Time("layer", all, json, [&](int64_t i, cudaStream_t s) {
      absl::Status status;
      for (int p = 0; p < kProducts && status.ok(); ++p) {
        status = Enqueue(kLayer[p], rows, weights_[i % kLayers * kProducts + p], s);
      }
      return status;
    });
    Time(kLogits.name, kLogits.out * kLogits.in, json,
         [&](int64_t, cudaStream_t s) { return Enqueue(kLogits, rows, logits_, s); });
    std::fprintf(stderr, "\n");
    return json;
  }

 private:
  absl::Status Enqueue(const Product& p, int rows, const DeviceBuffer& w, cudaStream_t stream) {
    GemmShape shape = {p.out, p.in, rows, p.output};
    const bool activate = p.output == GemmOutput::kSiluMul && !ours_;
    if (activate) shape.output = GemmOutput::kBf16;
    absl::Status status = gemm_->Run(shape, w.as<uint16_t>(), x_.as<uint16_t>(), y_.data(), stream);
    if (!status.ok() || !activate) return status;
    const auto size = static_cast<int32_t>(p.out / 2);
    return kernels::LaunchSiluMul(y_.as<uint16_t>(), rows, size, gate_up_.as<uint16_t>(), stream) ==
                   cudaSuccess
               ? absl::OkStatus()
               : absl::InternalError("activating");
  }

  template <typename Work>
  void Time(const char* name, int64_t weights, nlohmann::json& json, const Work& work) {
    const auto enqueue = [&](int64_t i, cudaStream_t stream) {
      Require(work(i, stream));
      return cudaSuccess;
    };
    Require(Elapsed(nullptr, [&](cudaStream_t s) { return enqueue(0, s); }).status());
    const LaunchTiming timing = Require(TimeLaunches(enqueue, kLayers, 5));
    json[name] = timing.graph_us;
    std::fprintf(stderr, "  %s %.1f us (%.2f TB/s)", name, timing.graph_us,
                 static_cast<double>(weights) * 2 / timing.graph_us / 1e6);
  }

  const DeviceBuffer x_, y_, gate_up_;
  std::vector<DeviceBuffer> weights_;  // [kLayers][products]
  DeviceBuffer logits_;
  std::unique_ptr<Gemm> gemm_;
  bool ours_ = true;
};

int Main(int argc, char** argv) {
  CLI::App app("Matrix products of a decode step: ours against cuBLAS");
  std::vector<int> rows = {1, 8, 24, 32, 48, 64};
  app.add_option("--rows", rows, "numbers of rows")->check(CLI::Range(1, kernels::kSkinnyGemmRows));
  CLI11_PARSE(app, argc, argv);
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::cerr << "gpu_gemm_bench: no GPU on this machine\n";
    return 1;
  }
  Bench bench(kernels::kSkinnyGemmRows);
  nlohmann::json runs = nlohmann::json::array();
  for (const int n : rows) {
    for (const bool ours : {true, false}) runs.push_back(bench.Run(n, ours));
  }
  std::cout << nlohmann::json{{"runs", runs}}.dump(2) << "\n";
  return 0;
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) { return fourierkv::Main(argc, argv); }
