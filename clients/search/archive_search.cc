#include "clients/search/archive_search.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "clients/eval/archived_form.h"
#include "clients/search/moments.h"
#include "compute/base/bfloat16.h"
#include "compute/cache/compact_kv_cache.h"
#include "compute/codec/archive_builder.h"
#include "compute/codec/archive_codec.h"
#include "compute/codec/segment_blob.h"

namespace fourierkv {
namespace {

constexpr int kStepBisections = 12;
constexpr int kQualityBisections = 5;
constexpr int kSamplesPerContext = 16;  // segments that the entropy model learns from
// Heads whose loss could not be measured still get some bits: other texts may need them.
constexpr double kSmallestSensitivity = 1e-4;  // of the geometric mean

class ArchiveSearch {
 public:
  ArchiveSearch(const SearchProbe& probe, const SearchResult& found,
                const ArchiveSearchOptions& options,
                const std::function<void(absl::string_view)>& progress)
      : probe_(probe),
        found_(found),
        options_(options),
        progress_(progress),
        geometry_(found.profile.geometry) {}

  absl::StatusOr<ArchiveSearchResult> Run() {
    progress_("collecting what the archive needs to know of K and V");
    CollectStatistics();
    auto result = AtRatio(options_.ratio);
    if (!result.ok() || options_.max_kl <= 0 || result->quality.kl <= options_.max_kl) {
      return result;
    }
    double low = std::log(2.0), high = std::log(result->ratio);
    absl::StatusOr<ArchiveSearchResult> best = absl::InvalidArgumentError(absl::StrFormat(
        "no archive keeps the KL divergence below %g; allow more", options_.max_kl));
    for (int i = 0; i < kQualityBisections; ++i) {
      const double middle = i == 0 ? std::max(low, high - std::log(1.5)) : (low + high) / 2;
      result = AtRatio(std::exp(middle));
      if (!result.ok()) return result;
      if (result->quality.kl <= options_.max_kl) {
        low = middle;
        best = std::move(result);
      } else {
        high = middle;
      }
    }
    return best;
  }

 private:
  int64_t Segments(const EvalContext& context) const {
    return CompactKvCache::CompactSegments(context.dense().length(), tokens_,
                                           options_.recent_window);
  }

  // One segment of one part: [kv_heads][S][head_dim].
  std::vector<uint16_t> Load(const EvalContext& context, int layer, Part part, int64_t i) const {
    const ExactBlock block = context.dense().exact_block(layer);
    const int64_t size = int64_t{tokens_} * geometry_.head_dim;
    std::vector<uint16_t> dense(geometry_.kv_heads * size);
    for (int head = 0; head < geometry_.kv_heads; ++head) {
      std::copy_n((part == Part::kK ? block.k : block.v) + head * block.head_stride + i * size,
                  size, dense.data() + head * size);
    }
    return dense;
  }

  void CollectStatistics() {
    const LlamaModel& model = *probe_.engine().model;
    const size_t dim = geometry_.head_dim;
    statistics_.rope_frequencies = model.rope().frequencies();
    for (size_t i = 0; i < found_.costs.size(); ++i) {
      statistics_.heads.push_back(
          {std::vector<double>(dim), std::vector<double>(dim * dim), Sensitivity(i)});
    }
    double values = 0;
    for (const auto& context : probe_.contexts()) {
      const int64_t segments = Segments(*context);
      values += static_cast<double>(segments) * tokens_;
      for (int layer = 0; layer < geometry_.layers; ++layer) {
        for (const Part part : kParts) {
          for (int64_t i = 1; i <= segments; ++i) AddSegment(*context, layer, part, i);
          for (int s = 0; s < std::min<int64_t>(kSamplesPerContext, segments); ++s) {
            const int64_t i = 1 + s * segments / std::min<int64_t>(kSamplesPerContext, segments);
            samples_.push_back({layer, part, context->dense().dtype(), i * tokens_,
                                Load(*context, layer, part, i)});
          }
        }
      }
    }
    for (ArchiveHeadStatistics& head : statistics_.heads) {
      for (double& x : head.mean) x /= values;
      for (double& x : head.second_moment) x /= values;
    }
  }

  void AddSegment(const EvalContext& context, int layer, Part part, int64_t i) {
    const std::vector<uint16_t> dense = Load(context, layer, part, i);
    const int dim = geometry_.head_dim, half = dim / 2;
    const Rope::Table table = probe_.engine().model->rope().MakeTable(i * tokens_, tokens_);
    std::vector<float> x(static_cast<size_t>(tokens_) * dim);
    for (int head = 0; head < geometry_.kv_heads; ++head) {
      for (size_t v = 0; v < x.size(); ++v) {
        x[v] = KvToFloat(dense[head * x.size() + v], context.dense().dtype());
      }
      if (part == Part::kK) {
        for (int t = 0; t < tokens_; ++t) {  // turned back by RoPE's angle
          for (int d = 0; d < half; ++d) {
            float& a = x[static_cast<size_t>(t) * dim + d];
            float& b = x[static_cast<size_t>(t) * dim + d + half];
            const float cos = table.cos[static_cast<size_t>(t) * half + d];
            const float sin = table.sin[static_cast<size_t>(t) * half + d];
            const float turned = a * cos + b * sin;
            b = b * cos - a * sin;
            a = turned;
          }
        }
      }
      ArchiveHeadStatistics& to =
          statistics_.heads[(static_cast<size_t>(layer) * geometry_.kv_heads + head) * 2 +
                            static_cast<size_t>(part)];
      AddFirstMoment(x.data(), tokens_, dim, &to.mean);
      AddSecondMoment(x.data(), tokens_, dim, &to.second_moment);
    }
  }

  // Harm per squared error in each channel of head i.
  std::vector<double> Sensitivity(size_t i) const {
    const std::vector<double>& weights = found_.costs[i].weights;
    const size_t half = weights.size() / 2;
    double log_sum = 0;
    for (const double s : found_.sensitivities) log_sum += std::log(std::max(s, 1e-300));
    const double mean = std::exp(log_sum / static_cast<double>(found_.sensitivities.size()));
    const double head = std::max(found_.sensitivities[i], kSmallestSensitivity * mean);
    const double largest = *std::max_element(weights.begin(), weights.end());
    std::vector<double> result(weights.size());
    for (size_t d = 0; d < weights.size(); ++d) {
      const double w =
          i % 2 == 0 ? (weights[d] + weights[d < half ? d + half : d - half]) / 2 : weights[d];
      result[d] = head * std::max(w, 1e-6 * std::max(largest, 1e-30));
    }
    return result;
  }

  absl::StatusOr<std::pair<ArchiveProfile, std::shared_ptr<const ArchiveCodec>>> Build(
      double step) const {
    auto archive = BuildArchive(found_.profile, statistics_,
                                {.step = step, .share_v_rotation = true}, samples_);
    if (!archive.ok()) return archive.status();
    CodecProfile profile = found_.profile;
    profile.archive = *archive;
    auto codec = ArchiveCodec::Create(profile);
    if (!codec.ok()) return codec.status();
    return std::pair{*std::move(archive), std::shared_ptr<const ArchiveCodec>(*std::move(codec))};
  }

  // Of the samples, headers included. Too coarse or too fine a step is no error here.
  absl::StatusOr<double> Ratio(const ArchiveCodec& codec) const {
    double bytes = 0, dense = 0;
    for (const ArchiveSample& sample : samples_) {
      auto archived =
          codec.Encode(sample.layer, sample.part, sample.dtype, sample.first_token, sample.dense);
      dense += 2.0 * static_cast<double>(sample.dense.size());
      if (absl::IsOutOfRange(archived.status())) {  // no smaller than dense
        bytes += 2.0 * static_cast<double>(sample.dense.size());
        continue;
      }
      if (!archived.ok()) return archived.status();
      bytes += static_cast<double>(archived->payload.size() + kBlobHeaderBytes);
    }
    return dense / bytes;
  }

  absl::StatusOr<ArchiveSearchResult> AtRatio(double ratio) {
    // Were every value of every channel quantised by itself, harm would be values x step^2 / 12.
    const double values = static_cast<double>(found_.costs.size()) * geometry_.head_dim;
    const double fine = std::sqrt(12 * 1e-6 / values);
    double low = std::log(fine), high = std::log(fine * 1e4);
    absl::StatusOr<ArchiveSearchResult> result = absl::InvalidArgumentError(
        absl::StrFormat("an archive %.1f times smaller is out of reach", ratio));
    std::shared_ptr<const ArchiveCodec> codec;
    for (int i = 0; i < kStepBisections; ++i) {
      const double middle = (low + high) / 2;
      auto built = Build(std::exp(middle));
      if (!built.ok()) return built.status();
      const auto reached = Ratio(*built->second);
      if (!reached.ok()) return reached.status();
      if (*reached >= ratio) {
        high = middle;
        result = ArchiveSearchResult{std::move(built->first), *reached, {}};
        codec = std::move(built->second);
      } else {
        low = middle;
      }
    }
    if (!result.ok()) return result;
    const auto form =
        MakeArchivedForm("archived", codec, options_.recent_window, probe_.engine().backend);
    auto quality = probe_.Measure(*form);
    if (!quality.ok()) return quality.status();
    result->quality = *quality;
    progress_(absl::StrFormat("archived %.1f x: %s", result->ratio, quality->ToString()));
    return result;
  }

  const SearchProbe& probe_;
  const SearchResult& found_;
  const ArchiveSearchOptions options_;
  const std::function<void(absl::string_view)>& progress_;
  const KvGeometry geometry_;
  const int tokens_ = found_.profile.segment_tokens;
  ArchiveStatistics statistics_;
  std::vector<ArchiveSample> samples_;
};

}  // namespace

absl::StatusOr<ArchiveSearchResult> SearchArchive(
    const SearchProbe& probe, const SearchResult& found, const ArchiveSearchOptions& options,
    const std::function<void(absl::string_view)>& progress) {
  if (!(options.ratio >= 2 && options.ratio <= 1000)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the archive's ratio is ", options.ratio, "; it must be 2 to 1000"));
  }
  return ArchiveSearch(probe, found, options, progress).Run();
}

}  // namespace fourierkv
