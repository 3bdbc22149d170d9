// Speed and accuracy of the CPU backend: encode, decode, and attention of one query token on
// compact segments beside attention on the same tokens held dense, interleaved in the same run.
//
// Every figure works through several layers of distinct data, in turn, so that nothing stays in a
// core's own caches. JSON goes to standard output, progress to standard error. Beside the default:
//
//   codec_bench --v-spectral 0.8 --rotate v                       K and rotated V 80% spectral
//   codec_bench --v-spectral 0.8 --rotate v --resident-bits 3     the same with 3 bits
//   codec_bench --coefficient-bits 16                             bf16 coefficients

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "compute/backend/compute_backend.h"
#include "compute/base/bfloat16.h"
#include "compute/base/thread_pool.h"
#include "compute/codec/reference_codec.h"
#include "compute/codec/segment_layout.h"
#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv {
namespace {

struct Options {
  int tokens = 16384;
  int threads = 1;
  int layers = 4;
  int query_heads = 32;
  int kv_heads = 8;
  int head_dim = 128;
  int segment_tokens = 256;
  double k_spectral = 0.8;
  double v_spectral = 0.5;
  int resident_bits = 4;
  int coefficients = 8;
  int coefficient_bits = 8;
  std::string rotate = "none";
  int repeats = 15;
  uint64_t seed = 0;
  std::string output = "json";
};

struct LayerData {
  std::vector<uint16_t> k, v;                     // [segment][kv_heads][S][head_dim]
  std::vector<std::vector<std::byte>> compact_k;  // per segment
  std::vector<std::vector<std::byte>> compact_v;
  std::vector<CompactBlock> compact;
  std::vector<ExactBlock> exact;
};

double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Undisturbed by whatever else the machine does.
double Fastest(const std::vector<double>& values) {
  return *std::min_element(values.begin(), values.end());
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << "codec_bench: " << status << "\n";
  std::exit(1);
}

// Channels that drift slowly, with noise: what caches look like, roughly. Speed does not depend on
// it.
void FillLayer(const Options& options, std::mt19937_64& random, std::vector<uint16_t>* dense) {
  const int64_t rows = static_cast<int64_t>(options.tokens) * options.kv_heads;
  dense->resize(rows * options.head_dim);
  std::normal_distribution<float> normal;
  std::vector<float> drift(options.head_dim);
  uint64_t state = random() | 1;
  for (int64_t r = 0; r < rows; ++r) {
    if (r % 64 == 0) {
      for (float& x : drift) x = 0.8f * x + normal(random);
    }
    for (int c = 0; c < options.head_dim; ++c) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      const float noise = static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-32f;
      (*dense)[r * options.head_dim + c] = FloatToBf16(drift[c] + noise);
    }
  }
}

class CodecBench {
 public:
  explicit CodecBench(const Options& options)
      : options_(options),
        segments_(options.tokens / options.segment_tokens),
        backend_(CreateCpuBackend(options.threads)) {
    KvGeometry geometry;
    geometry.layers = options.layers;
    geometry.kv_heads = options.kv_heads;
    geometry.head_dim = options.head_dim;
    Require(geometry.Validate());
    CodecProfile profile = UniformProfile(geometry, options.k_spectral, options.v_spectral,
                                          options.coefficients, options.resident_bits);
    profile.segment_tokens = options.segment_tokens;
    std::mt19937_64 random(options.seed);
    for (size_t i = 0; i < profile.heads.size(); ++i) {
      HeadProfile& head = profile.heads[i];
      if (!head.bands.empty() && head.bands[0].spectral()) {
        head.bands[0].bits = options.coefficient_bits;
      }
      const char part = kParts[i % 2] == Part::kK ? 'k' : 'v';
      if (options.rotate != "none" && options.rotate.find(part) != std::string::npos) {
        head.rotation = RandomRotation(random, options.head_dim);
      }
    }
    Require(profile.Validate());
    layout_ = std::make_unique<ProfileLayout>(profile);
  }

  nlohmann::json Run() {
    Prepare();
    nlohmann::json report;
    report["backend"] = backend_->name();
    report["tokens"] = options_.tokens;
    report["threads"] = options_.threads;
    report["layers"] = options_.layers;
    report["shape"] = {{"query_heads", options_.query_heads},
                       {"kv_heads", options_.kv_heads},
                       {"head_dim", options_.head_dim}};
    report["profile"] = {{"segment_tokens", options_.segment_tokens},
                         {"k_spectral", options_.k_spectral},
                         {"v_spectral", options_.v_spectral},
                         {"coefficients", options_.coefficients},
                         {"coefficient_bits", options_.coefficient_bits},
                         {"rotate", options_.rotate},
                         {"resident_bits", options_.resident_bits}};
    report["bits_per_element"] = layout_->BitsPerElement();
    report["encode"] = MeasureEncode();
    report["decode"] = MeasureDecode();
    report["memory_read_gb_per_s"] = MeasureMemory();
    report["attention"] = MeasureAttention();
    report["attention"]["relative_error"] = MeasureError();
    return report;
  }

 private:
  int64_t PartElements() const {
    return static_cast<int64_t>(options_.segment_tokens) * options_.kv_heads * options_.head_dim;
  }
  double DenseBytes() const { return 4.0 * PartElements() * segments_; }  // K and V of one layer

  void Prepare() {
    std::mt19937_64 random(options_.seed);
    layers_.resize(options_.layers);
    for (int l = 0; l < options_.layers; ++l) {
      std::cerr << "codec_bench: making layer " << l + 1 << " of " << options_.layers << "\n";
      LayerData& layer = layers_[l];
      FillLayer(options_, random, &layer.k);
      FillLayer(options_, random, &layer.v);
      layer.compact_k.resize(segments_);
      layer.compact_v.resize(segments_);
      for (int s = 0; s < segments_; ++s) {
        layer.compact_k[s].resize(layout_->part(l, Part::kK).payload_bytes);
        layer.compact_v[s].resize(layout_->part(l, Part::kV).payload_bytes);
        layer.compact.push_back({layer.compact_k[s].data(), layer.compact_v[s].data()});
        const int64_t offset = s * PartElements();
        layer.exact.push_back({layer.k.data() + offset, layer.v.data() + offset,
                               options_.segment_tokens,
                               static_cast<int64_t>(options_.segment_tokens) * options_.head_dim});
      }
    }
    q_.resize(static_cast<size_t>(options_.query_heads) * options_.head_dim);
    out_.resize(q_.size());
    std::normal_distribution<float> normal;
    for (float& x : q_) x = normal(random);
  }

  std::vector<EncodeJob> EncodeJobs(int l) {
    std::vector<EncodeJob> jobs;
    for (int s = 0; s < segments_; ++s) {
      for (Part part : kParts) {
        const ExactBlock& block = layers_[l].exact[s];
        EncodeJob job;
        job.layout = &layout_->part(l, part);
        job.dense = part == Part::kK ? block.k : block.v;
        job.head_stride = block.head_stride;
        job.payload = (part == Part::kK ? layers_[l].compact_k : layers_[l].compact_v)[s].data();
        jobs.push_back(job);
      }
    }
    return jobs;
  }

  nlohmann::json MeasureEncode() {
    std::cerr << "codec_bench: encode\n";
    std::vector<double> seconds;
    double error = 0;
    for (int r = 0; r < options_.repeats; ++r) {
      for (int l = 0; l < options_.layers; ++l) {
        std::vector<EncodeJob> jobs = EncodeJobs(l);
        seconds.push_back(Seconds([&] { Require(backend_->Encode(KvDtype::kBf16, jobs)); }));
        for (const EncodeJob& job : jobs) error = std::max<double>(error, job.relative_error);
      }
    }
    const double rate = DenseBytes() / Median(seconds) / 1e9;
    return {{"input_gb_per_s", rate},
            {"input_gb_per_s_per_thread", rate / options_.threads},
            {"fastest_input_gb_per_s", DenseBytes() / Fastest(seconds) / 1e9},
            {"largest_segment_relative_error", error}};
  }

  nlohmann::json MeasureDecode() {
    std::cerr << "codec_bench: decode\n";
    std::vector<uint16_t> dense(2 * PartElements() * segments_);
    std::vector<double> seconds;
    for (int r = 0; r < options_.repeats; ++r) {
      for (int l = 0; l < options_.layers; ++l) {
        std::vector<DecodeJob> jobs;
        for (const EncodeJob& job : EncodeJobs(l)) {
          jobs.push_back({job.layout, job.payload, dense.data() + jobs.size() * PartElements(),
                          job.head_stride});
        }
        seconds.push_back(Seconds(
            [&] { Require(backend_->Decode(KvDtype::kBf16, std::span<const DecodeJob>(jobs))); }));
      }
    }
    const double rate = DenseBytes() / Median(seconds) / 1e9;
    return {{"output_gb_per_s", rate},
            {"output_gb_per_s_per_thread", rate / options_.threads},
            {"fastest_output_gb_per_s", DenseBytes() / Fastest(seconds) / 1e9}};
  }

  // What the same threads reach when they do nothing but touch every cache line of the dense K and
  // V.
  double MeasureMemory() {
    std::cerr << "codec_bench: memory\n";
    constexpr int64_t kPiece = 1 << 19;  // elements
    constexpr int64_t kLine = 32;        // elements in a cache line
    ThreadPool pool(options_.threads);
    std::atomic<uint64_t> sink = 0;  // keeps the reads
    std::vector<double> seconds;
    for (int r = 0; r < options_.repeats; ++r) {
      for (const LayerData& layer : layers_) {
        seconds.push_back(Seconds([&] {
          for (const std::vector<uint16_t>* part : {&layer.k, &layer.v}) {
            const auto size = static_cast<int64_t>(part->size());
            pool.ParallelFor((size + kPiece - 1) / kPiece, [&](int64_t piece, int) {
              const int64_t end = std::min(size, (piece + 1) * kPiece);
              uint64_t sum = 0;
              for (int64_t i = piece * kPiece; i < end; i += kLine) sum += (*part)[i];
              sink += sum;
            });
          }
        }));
      }
    }
    return DenseBytes() / Median(seconds) / 1e9;
  }

  AttentionArgs Args(int l, bool compact) {
    AttentionArgs args;
    args.kv.kv_heads = options_.kv_heads;
    args.kv.head_dim = options_.head_dim;
    if (compact) {
      args.kv.k_layout = &layout_->part(l, Part::kK);
      args.kv.v_layout = &layout_->part(l, Part::kV);
      args.kv.compact = layers_[l].compact;
    } else {
      args.kv.exact = layers_[l].exact;
    }
    args.query_heads = options_.query_heads;
    args.scale = 1.0f / std::sqrt(static_cast<float>(options_.head_dim));
    args.q = q_.data();
    args.out = out_.data();
    return args;
  }

  nlohmann::json MeasureAttention() {
    std::cerr << "codec_bench: attention\n";
    std::vector<double> compact, dense;
    for (int r = 0; r < options_.repeats; ++r) {
      for (int l = 0; l < options_.layers; ++l) {
        dense.push_back(Seconds([&] { Require(backend_->Attend(Args(l, false))); }));
      }
      for (int l = 0; l < options_.layers; ++l) {
        compact.push_back(Seconds([&] { Require(backend_->Attend(Args(l, true))); }));
      }
    }
    const double compact_bytes = static_cast<double>(layout_->part(0, Part::kK).payload_bytes +
                                                     layout_->part(0, Part::kV).payload_bytes) *
                                 segments_;
    const auto entry = [&](const std::vector<double>& seconds, double bytes) {
      return nlohmann::json{{"microseconds", Median(seconds) * 1e6},
                            {"fastest_microseconds", Fastest(seconds) * 1e6},
                            {"bytes", bytes},
                            {"gb_per_s", bytes / Median(seconds) / 1e9}};
    };
    return {{"compact", entry(compact, compact_bytes)},
            {"dense", entry(dense, DenseBytes())},
            {"speed_up", Median(dense) / Median(compact)},
            {"speed_up_of_fastest", Fastest(dense) / Fastest(compact)}};
  }

  // ||out - reference|| / ||reference|| over all query heads of layer 0, both on the same compact
  // data.
  double MeasureError() {
    std::cerr << "codec_bench: float64 reference\n";
    Require(backend_->Attend(Args(0, true)));
    const int64_t per_head = static_cast<int64_t>(options_.segment_tokens) * options_.head_dim;
    std::vector<std::vector<double>> k(options_.kv_heads), v(options_.kv_heads);
    for (int s = 0; s < segments_; ++s) {
      const auto decoded_k =
          reference::DecodePart(layout_->part(0, Part::kK), layers_[0].compact_k[s]);
      const auto decoded_v =
          reference::DecodePart(layout_->part(0, Part::kV), layers_[0].compact_v[s]);
      for (int h = 0; h < options_.kv_heads; ++h) {
        k[h].insert(k[h].end(), decoded_k.begin() + h * per_head,
                    decoded_k.begin() + (h + 1) * per_head);
        v[h].insert(v[h].end(), decoded_v.begin() + h * per_head,
                    decoded_v.begin() + (h + 1) * per_head);
      }
    }
    const int group = options_.query_heads / options_.kv_heads;
    double error = 0;
    double norm = 0;
    for (int h = 0; h < options_.kv_heads; ++h) {
      const size_t begin = static_cast<size_t>(h) * group * options_.head_dim;
      const size_t size = static_cast<size_t>(group) * options_.head_dim;
      const std::vector<double> q(q_.begin() + begin, q_.begin() + begin + size);
      std::vector<double> out(size);
      reference::Attend(q, k[h], v[h], group, segments_ * options_.segment_tokens,
                        options_.head_dim, 1 / std::sqrt(options_.head_dim), out, {});
      for (size_t i = 0; i < size; ++i) {
        error += (out[i] - out_[begin + i]) * (out[i] - out_[begin + i]);
        norm += out[i] * out[i];
      }
    }
    return std::sqrt(error / norm);
  }

  const Options options_;
  const int segments_;
  std::unique_ptr<ComputeBackend> backend_;
  std::unique_ptr<ProfileLayout> layout_;
  std::vector<LayerData> layers_;
  std::vector<float> q_;
  std::vector<float> out_;
};

void PrintTable(const nlohmann::json& report) {
  const nlohmann::json& attention = report.at("attention");
  const auto line = [](const char* name, double value, const char* unit) {
    std::printf("%-36s %12.4g %s\n", name, value, unit);
  };
  std::printf("%s, %d tokens\n", report.at("backend").get<std::string>().c_str(),
              report.at("tokens").get<int>());
  line("compact size", report.at("bits_per_element"), "bits per element");
  line("encode, bf16 input", report.at("encode").at("input_gb_per_s"), "GB/s");
  line("  fastest run", report.at("encode").at("fastest_input_gb_per_s"), "GB/s");
  line("decode, bf16 output", report.at("decode").at("output_gb_per_s"), "GB/s");
  line("  fastest run", report.at("decode").at("fastest_output_gb_per_s"), "GB/s");
  line("memory read", report.at("memory_read_gb_per_s"), "GB/s");
  for (const char* kind : {"dense", "compact"}) {
    line((std::string("attention, ") + kind).c_str(), attention.at(kind).at("microseconds"),
         "us a layer");
    line("  its K and V", attention.at(kind).at("bytes").get<double>() / 1e6, "MB");
    line("  read at", attention.at(kind).at("gb_per_s"), "GB/s");
  }
  line("compact is faster by", attention.at("speed_up"), "x (medians)");
  line("", attention.at("speed_up_of_fastest"), "x (fastest runs)");
  line("its error against float64", attention.at("relative_error"), "");
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  using fourierkv::Options;
  Options options;
  CLI::App app("Speed and accuracy of the CPU backend, compact against dense");
  app.add_option("--tokens", options.tokens, "cache length, whole segments")
      ->check(CLI::Range(128, 1 << 20))
      ->capture_default_str();
  app.add_option("--threads", options.threads)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--layers", options.layers, "layers of distinct data to go through in turn")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--query-heads", options.query_heads)
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--kv-heads", options.kv_heads)->check(CLI::Range(1, 256))->capture_default_str();
  app.add_option("--head-dim", options.head_dim)->check(CLI::Range(8, 512))->capture_default_str();
  app.add_option("--segment-tokens", options.segment_tokens)
      ->check(CLI::IsMember({128, 256, 512, 1024}))
      ->capture_default_str();
  app.add_option("--k-spectral", options.k_spectral, "fraction of K's channels")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--v-spectral", options.v_spectral, "fraction of V's channels")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--coefficients", options.coefficients, "M")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--coefficient-bits", options.coefficient_bits)
      ->check(CLI::IsMember({8, 16}))
      ->capture_default_str();
  app.add_option("--rotate", options.rotate, "whose channels, by random matrices")
      ->check(CLI::IsMember({"none", "k", "v", "kv"}))
      ->capture_default_str();
  app.add_option("--resident-bits", options.resident_bits)
      ->check(CLI::IsMember({2, 3, 4, 8, 16}))
      ->capture_default_str();
  app.add_option("--repeats", options.repeats)->check(CLI::Range(1, 10000))->capture_default_str();
  app.add_option("--seed", options.seed)->capture_default_str();
  app.add_option("--output", options.output)
      ->check(CLI::IsMember({"json", "table"}))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (options.tokens % options.segment_tokens != 0) {
    std::cerr << "codec_bench: --tokens must be a multiple of --segment-tokens\n";
    return 1;
  }
  if (options.query_heads % options.kv_heads != 0) {
    std::cerr << "codec_bench: --query-heads must be a multiple of --kv-heads\n";
    return 1;
  }
  const nlohmann::json report = fourierkv::CodecBench(options).Run();
  if (options.output == "json") {
    std::cout << report.dump(2) << "\n";
  } else {
    fourierkv::PrintTable(report);
  }
  return 0;
}
