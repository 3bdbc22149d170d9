// Bytes and speed of the archive codec on a model's own KV: the archive section is made from one
// half of a text and measured on the other. JSON goes to standard output.

#include <CLI/CLI.hpp>
#include <cmath>
#include <ctime>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "compute/backend/compute_backend.h"
#include "compute/base/bfloat16.h"
#include "compute/base/thread_pool.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/codec/archive_builder.h"
#include "compute/codec/archive_codec.h"
#include "compute/codec/archive_kernels.h"
#include "compute/codec/segment_layout.h"
#include "compute/model/byte_tokenizer.h"
#include "compute/model/llama_runner.h"

namespace fourierkv {
namespace {

constexpr int kSegment = 256;

struct Options {
  std::string model;
  std::vector<std::string> texts;
  std::string profile;  // empty: an archive is made for --step and --rounding
  int tokens = 8192;
  double step = 3;
  int rounding = 102;
};

template <class T>
T Require(absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  std::cerr << "archive_bench: " << value.status() << "\n";
  std::exit(1);
}

void Require(const absl::Status& status) {
  if (status.ok()) return;
  std::cerr << "archive_bench: " << status << "\n";
  std::exit(1);
}

// Of all threads: backends may have their own.
double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// What a prefill leaves: all whole segments but the first, and the squares of queries.
struct Recording {
  std::vector<ArchiveSample> samples;
  std::vector<std::vector<double>> query_energy;  // [layer][kv_heads * head_dim]
};

Recording Record(const std::shared_ptr<const LlamaModel>& model, std::span<const int32_t> tokens) {
  const ModelConfig& c = model->config();
  Recording recording;
  recording.query_energy.assign(c.layers,
                                std::vector<double>(static_cast<size_t>(c.kv_heads) * c.head_dim));
  ForwardOptions forward;
  forward.on_qkv = [&](int layer, int64_t first, int n, const float* q, const float* k,
                       const float* v) {
    const int group = c.query_heads / c.kv_heads;
    for (int64_t i = 0; i < int64_t{n} * c.query_heads * c.head_dim; ++i) {
      const auto head = i / c.head_dim % c.query_heads / group;
      recording.query_energy[layer][head * c.head_dim + i % c.head_dim] += double{q[i]} * q[i];
    }
    if (first == 0 || n < kSegment) return absl::OkStatus();
    for (const Part part : kParts) {
      ArchiveSample sample{.layer = layer, .part = part, .first_token = first, .dense = {}};
      for (int h = 0; h < c.kv_heads; ++h) {
        for (int t = 0; t < n; ++t) {
          const float* row =
              (part == Part::kK ? k : v) + (static_cast<size_t>(t) * c.kv_heads + h) * c.head_dim;
          for (int d = 0; d < c.head_dim; ++d) sample.dense.push_back(FloatToBf16(row[d]));
        }
      }
      recording.samples.push_back(std::move(sample));
    }
    return absl::OkStatus();
  };
  const auto backend = CreateCpuBackend(0);
  const auto cache = Require(
      DenseKvCache::Create(c.Geometry(), backend.get(), static_cast<int64_t>(tokens.size())));
  LlamaRunner runner(model, std::make_shared<ThreadPool>(2));
  ForwardOutput ignored;
  Require(Prefill(runner, tokens, *cache, &ignored, kSegment, forward));
  return recording;
}

// Moments of the recording; sensitivities such that every head's relative error counts alike.
ArchiveStatistics Statistics(const LlamaModel& model, const Recording& recording) {
  const ModelConfig& c = model.config();
  const int n = c.head_dim;
  ArchiveStatistics statistics{.rope_frequencies = model.rope().frequencies(), .heads = {}};
  statistics.heads.resize(size_t{2} * c.layers * c.kv_heads);
  for (ArchiveHeadStatistics& head : statistics.heads) {
    head.mean.assign(n, 0);
    head.second_moment.assign(static_cast<size_t>(n) * n, 0);
    head.sensitivity.assign(n, 0);
  }
  const RopeTables tables(statistics.rope_frequencies, kSegment);
  const double share =
      2.0 * c.layers / (static_cast<double>(recording.samples.size()) * kSegment);  // of a token
  std::vector<float> x(static_cast<size_t>(kSegment) * n);
  for (const ArchiveSample& sample : recording.samples) {
    const RopeTable rope = tables.At(sample.first_token);
    for (int h = 0; h < c.kv_heads; ++h) {
      archive::Widen(sample.dtype, sample.dense.data() + h * x.size(),
                     static_cast<int64_t>(x.size()), x.data());
      if (sample.part == Part::kK) {
        archive::Turn(rope.cos.data(), rope.sin.data(), kSegment, n / 2, /*back=*/true, x.data());
      }
      ArchiveHeadStatistics& head =
          statistics.heads[(sample.layer * c.kv_heads + h) * 2 + static_cast<size_t>(sample.part)];
      for (int t = 0; t < kSegment; ++t) {
        const float* row = x.data() + static_cast<size_t>(t) * n;
        for (int d = 0; d < n; ++d) {
          head.mean[d] += share * row[d];
          for (int e = 0; e < n; ++e) head.second_moment[d * n + e] += share * row[d] * row[e];
        }
      }
    }
  }
  const int group = c.query_heads / c.kv_heads;
  for (int layer = 0; layer < c.layers; ++layer) {
    for (int h = 0; h < c.kv_heads; ++h) {
      for (const Part part : kParts) {
        ArchiveHeadStatistics& head =
            statistics.heads[(layer * c.kv_heads + h) * 2 + static_cast<size_t>(part)];
        double energy = 0;
        for (int d = 0; d < n; ++d) {
          if (part == Part::kK) {
            const std::vector<double>& q = recording.query_energy[layer];
            head.sensitivity[d] = q[h * n + d] + q[h * n + (d + n / 2) % n];
          } else {
            const std::vector<float>& o = model.layers()[layer].o;
            const size_t columns = static_cast<size_t>(c.query_heads) * n;
            for (size_t row = 0; row < o.size() / columns; ++row) {
              for (int q = h * group; q < (h + 1) * group; ++q) {
                head.sensitivity[d] +=
                    double{o[row * columns + q * n + d]} * o[row * columns + q * n + d];
              }
            }
          }
          energy += head.sensitivity[d] *
                    (head.second_moment[d * n + d] - head.mean[d] * head.mean[d]) / n;
        }
        for (double& s : head.sensitivity) s /= energy;
      }
    }
  }
  return statistics;
}

// Bits per value if every channel and frequency were coded at its own entropy in the data measured.
double IdealBits(const std::map<std::pair<int, int>, std::map<int, int>>& histograms) {
  double bits = 0;
  double values = 0;
  for (const auto& [place, histogram] : histograms) {
    double total = 0;
    for (const auto& [value, count] : histogram) total += count;
    for (const auto& [value, count] : histogram) bits -= count * std::log2(count / total);
    values += total;
  }
  return bits / values;
}

// CPU seconds of making the compact form of archived parts, as a fetch does: from the rotated
// channels that both forms share, or from the decoded values.
class Transcoder {
 public:
  explicit Transcoder(const ProfileLayout& layout)
      : layout_(layout), backend_(CreateCpuBackend(/*threads=*/1)) {}

  bool Shares(int layer, Part part) const { return layout_.rotated_part(layer, part) != nullptr; }

  double Seconds(const ArchiveSample& s, std::span<const std::byte> archived, bool rotated) {
    const ArchiveCodec& codec = *layout_.archive();
    const PartLayout& part =
        rotated ? *layout_.rotated_part(s.layer, s.part) : layout_.part(s.layer, s.part);
    values_.resize(s.dense.size());
    payload_.resize((part.payload_bytes + 7) / 8);
    EncodeJob job{.layout = &part,
                  .dense = values_.data(),
                  .head_stride = int64_t{kSegment} * codec.geometry().head_dim,
                  .payload = reinterpret_cast<std::byte*>(payload_.data())};
    const double start = CpuSeconds();
    Require(rotated ? codec.DecodeRotated(s.layer, s.part, s.first_token, archived, values_)
                    : codec.Decode(s.layer, s.part, s.dtype, s.first_token, archived, values_));
    Require(backend_->Encode(rotated ? KvDtype::kBf16 : s.dtype, std::span(&job, 1)));
    return CpuSeconds() - start;
  }

 private:
  const ProfileLayout& layout_;
  std::unique_ptr<ComputeBackend> backend_;
  std::vector<uint16_t> values_;
  std::vector<uint64_t> payload_;  // aligned as backends want it
};

nlohmann::json Measure(const ProfileLayout& layout, std::span<const ArchiveSample> samples,
                       Part part) {
  const ArchiveCodec& codec = *layout.archive();
  Transcoder transcoder(layout);
  double through_values = 0, through_rotated = 0, rotated_values = 0;
  double values = 0, bytes = 0, encode = 0, decode = 0, error = 0, parts = 0;
  std::map<std::pair<int, int>, std::map<int, int>> histograms;
  for (const ArchiveSample& s : samples) {
    if (s.part != part) continue;
    double start = CpuSeconds();
    const ArchivedPart archived =
        Require(codec.Encode(s.layer, part, s.dtype, s.first_token, s.dense));
    encode += CpuSeconds() - start;
    std::vector<uint16_t> decoded(s.dense.size());
    start = CpuSeconds();
    Require(
        codec.Decode(s.layer, part, s.dtype, s.first_token, archived.payload, std::span(decoded)));
    decode += CpuSeconds() - start;
    through_values += transcoder.Seconds(s, archived.payload, /*rotated=*/false);
    if (transcoder.Shares(s.layer, part)) {
      through_rotated += transcoder.Seconds(s, archived.payload, /*rotated=*/true);
      rotated_values += static_cast<double>(s.dense.size());
    }
    const std::vector<int16_t> q = Require(codec.DecodeSymbols(s.layer, part, archived.payload));
    for (size_t i = 0; i < q.size(); ++i) {
      const size_t place = i / kSegment * kArchiveBlock + i % kArchiveBlock;
      ++histograms[{s.layer, static_cast<int>(place)}][q[i]];
    }
    values += static_cast<double>(s.dense.size());
    bytes += static_cast<double>(archived.payload.size());
    error += archived.relative_error;
    ++parts;
  }
  const double ideal = IdealBits(histograms);
  nlohmann::json result = {{"bits_per_element", 8 * bytes / values},
                           {"ideal_bits_per_element", ideal},
                           {"over_ideal", 8 * bytes / values / ideal - 1},
                           {"ratio", 2 * values / bytes},
                           {"bytes_per_part", bytes / parts},
                           {"mean_relative_error", error / parts},
                           {"encode_mb_per_s", 2e-6 * values / encode},
                           {"decode_mb_per_s", 2e-6 * values / decode},
                           {"to_compact_mb_per_s", 2e-6 * values / through_values}};
  if (rotated_values > 0) {
    result["to_compact_in_rotated_channels_mb_per_s"] = 2e-6 * rotated_values / through_rotated;
  }
  return result;
}

CodecProfile MadeProfile(const Options& options, const LlamaModel& model,
                         const Recording& training) {
  CodecProfile profile = UniformProfile(model.config().Geometry(), 0, 0, 1, 4);
  profile.name = "uniform";
  profile.archive =
      Require(BuildArchive(profile, Statistics(model, training),
                           {.step = options.step, .rounding = options.rounding}, training.samples));
  return profile;
}

CodecProfile ReadProfile(const Options& options, const LlamaModel& model) {
  CodecProfile profile = Require(CodecProfile::FromFile(options.profile));
  Require(profile.CheckFits(model.config().Geometry()));
  if (!profile.archive.has_value() || profile.segment_tokens != kSegment) {
    Require(absl::InvalidArgumentError(
        absl::StrCat(options.profile, " has no archive of segments of ", kSegment, " tokens")));
  }
  return profile;
}

nlohmann::json Run(const Options& options) {
  const auto model = Require(LlamaModel::Load(options.model));
  std::string text;
  for (const std::string& path : options.texts) {
    std::ifstream file(path, std::ios::binary);
    text.append(std::istreambuf_iterator<char>(file), {});
  }
  std::vector<int32_t> tokens = EncodeBytes(text);
  const auto half = static_cast<size_t>(options.tokens);
  if (tokens.size() < 2 * half) {
    Require(absl::InvalidArgumentError("the texts have fewer than twice --tokens bytes"));
  }
  const Recording unseen = Record(model, std::span(tokens).subspan(half, half));
  const CodecProfile profile =
      options.profile.empty()
          ? MadeProfile(options, *model, Record(model, std::span(tokens).first(half)))
          : ReadProfile(options, *model);
  const ProfileLayout layout(profile);
  return {{"model", options.model},
          {"tokens", options.tokens},
          {"profile", profile.name},
          {"profile_bytes", profile.ToJson().size()},
          {"k", Measure(layout, unseen.samples, Part::kK)},
          {"v", Measure(layout, unseen.samples, Part::kV)}};
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  fourierkv::Options options;
  CLI::App app("Bytes and speed of archived segments on a model's KV");
  app.add_option("--model", options.model, "model folder")->required();
  app.add_option("--text", options.texts, "text files")->required()->check(CLI::ExistingFile);
  app.add_option("--profile", options.profile, "with an archive; without, one is made")
      ->check(CLI::ExistingFile);
  app.add_option("--tokens", options.tokens, "for training, and as many for measuring")
      ->check(CLI::Range(1024, 1 << 20))
      ->capture_default_str();
  app.add_option("--step", options.step)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--rounding", options.rounding)->check(CLI::Range(1, 128))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::cout << fourierkv::Run(options).dump(2) << "\n";
  return 0;
}
