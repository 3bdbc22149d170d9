#include "clients/search/profile_search.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "clients/search/allocation.h"
#include "clients/search/one_head_form.h"
#include "compute/codec/segment_blob.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {
namespace {

constexpr int kQualityBisections = 6;
constexpr double kSmallestRatio = 2;

MeasureOptions Measures() {
  return {.recall = true, .tail = true, .attention = false, .decoded_per_task = 0};
}

int64_t SegmentBytes(const ProfileLayout& layout) {
  return layout.SegmentPayloadBytes() +
         int64_t{kBlobHeaderBytes} * 2 * layout.profile().geometry.layers;
}

class Search {
 public:
  Search(const EvalEngine& engine, std::span<const std::unique_ptr<EvalContext>> contexts,
         const SearchOptions& options, SearchState& state,
         const std::function<void(absl::string_view)>& progress)
      : engine_(engine),
        contexts_(contexts),
        options_(options),
        state_(state),
        progress_(progress),
        geometry_(engine.model->config().Geometry()) {}

  absl::StatusOr<SearchResult> Run() {
    if (absl::Status s = MeasureDense(); !s.ok()) return s;
    progress_("trying every representation of every channel");
    auto costs = CollectCosts(engine_, contexts_, options_.representations, options_.costs);
    if (!costs.ok()) return costs.status();
    costs_ = *std::move(costs);
    if (absl::Status s = MeasureSensitivities(); !s.ok()) return s;

    absl::StatusOr<SearchResult> result = AtRatio(options_.ratio);
    if (!result.ok() || options_.max_kl <= 0 || result->quality.kl <= options_.max_kl) {
      return Finish(std::move(result));
    }
    // The largest ratio that keeps the quality, on a logarithmic scale.
    double low = std::log(kSmallestRatio), high = std::log(result->ratio);
    absl::StatusOr<SearchResult> best = absl::InvalidArgumentError(
        absl::StrFormat("no profile down to %.0f x keeps the KL divergence below %g; allow more",
                        kSmallestRatio, options_.max_kl));
    for (int i = 0; i < kQualityBisections; ++i) {
      const double middle = i == 0 ? std::max(low, high - std::log(2)) : (low + high) / 2;
      result = AtRatio(std::exp(middle));
      if (!result.ok()) return result;
      if (result->quality.kl <= options_.max_kl) {
        low = middle;
        best = std::move(result);
      } else {
        high = middle;
      }
    }
    return Finish(std::move(best));
  }

 private:
  AllocationOptions allocation() const {
    return {options_.costs.basis, options_.costs.segment_tokens, options_.smallest_band};
  }

  HeadPlace Place(size_t index) const {
    return {static_cast<int>(index / 2 / geometry_.kv_heads),
            static_cast<int>(index / 2 % geometry_.kv_heads), static_cast<Part>(index % 2)};
  }

  absl::Status MeasureDense() {
    const auto form = MakeDenseForm(engine_.backend);
    for (const auto& context : contexts_) {
      auto metrics = context->Measure(*form, Measures());
      if (!metrics.ok()) return metrics.status();
      dense_.push_back(*std::move(metrics));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<double> MeanHarm(const CacheForm& form) {
    double harm = 0;
    for (size_t i = 0; i < contexts_.size(); ++i) {
      auto metrics = contexts_[i]->Measure(form, Measures());
      if (!metrics.ok()) return metrics.status();
      harm += Harm(*metrics, dense_[i]) / static_cast<double>(contexts_.size());
    }
    return harm;
  }

  // Each head alone, at about the bits that it will have on average.
  absl::Status MeasureSensitivities() {
    const double bits = std::clamp(16 / options_.ratio, 0.5, 2.0);
    for (size_t i = 0; i < costs_.size(); ++i) {
      const HeadPlace place = Place(i);
      const double one = 1;
      auto allocation_of_head = Allocate(std::span(&costs_[i], 1), std::span(&one, 1),
                                         options_.representations, bits, allocation());
      if (!allocation_of_head.ok()) return allocation_of_head.status();
      const auto form = MakeOneHeadForm(
          geometry_, place,
          MakeHeadProfile(costs_[i], allocation_of_head->heads[0], options_.representations),
          options_.costs.basis, options_.costs.segment_tokens, options_.costs.recent_window,
          engine_.backend);
      const std::string key = absl::StrCat("harm of ", form->name());
      std::optional<double> harm = state_.Find(key);
      if (!harm.has_value()) {
        const auto measured = MeanHarm(*form);
        if (!measured.ok()) return measured.status();
        harm = *measured;
        if (absl::Status s = state_.Put(key, *harm); !s.ok()) return s;
      }
      const double error = std::max(allocation_of_head->harm, 1e-30);
      sensitivities_.push_back(*harm / error);
      progress_(absl::StrFormat("%d of %d heads: %s alone at %.2f bits harms %.3g nats", i + 1,
                                costs_.size(), form->name(), allocation_of_head->bits_per_value,
                                *harm));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<SearchResult> AtRatio(double ratio) {
    const double dense_bytes =
        static_cast<double>(geometry_.DenseBytes(options_.costs.segment_tokens));
    SearchResult result;
    double bits = 16 / ratio;
    // Headers and padding come on top of what is allocated.
    for (int i = 0; i < 8; ++i) {
      auto allocated =
          Allocate(costs_, sensitivities_, options_.representations, bits, allocation());
      if (!allocated.ok()) return allocated.status();
      result.profile = MakeProfile(*allocated);
      result.predicted_harm = allocated->harm;
      const ProfileLayout layout(result.profile);
      result.ratio = dense_bytes / static_cast<double>(SegmentBytes(layout));
      if (result.ratio >= ratio) break;
      bits *= std::min(0.999, result.ratio / ratio);
    }
    if (result.ratio < ratio * 0.99) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "a ratio of %.1f is out of reach with these representations and headers", ratio));
    }
    if (absl::Status s = result.profile.Validate(); !s.ok()) return s;
    auto quality = Measure(result.profile);
    if (!quality.ok()) return quality.status();
    result.quality = *quality;
    progress_(absl::StrFormat(
        "%.2f x: KL %.5f nats, top-1 agreement %.2f%%, bits per byte %+.2f%%, recall %d of %d "
        "(dense %d)",
        result.ratio, quality->kl, 100 * quality->top_agreement,
        100 * (quality->bits_per_byte / quality->dense_bits_per_byte - 1), quality->right,
        quality->questions, quality->dense_right));
    return result;
  }

  CodecProfile MakeProfile(const Allocation& allocated) const {
    CodecProfile profile;
    profile.name = options_.name;
    profile.geometry = geometry_;
    profile.basis = options_.costs.basis;
    profile.segment_tokens = options_.costs.segment_tokens;
    for (size_t i = 0; i < costs_.size(); ++i) {
      profile.heads.push_back(
          MakeHeadProfile(costs_[i], allocated.heads[i], options_.representations));
    }
    return profile;
  }

  absl::StatusOr<SearchQuality> Measure(const CodecProfile& profile) {
    const auto form = MakeCompactForm(profile.name, std::make_shared<const ProfileLayout>(profile),
                                      options_.costs.recent_window, engine_.backend);
    SearchQuality quality;
    TailScore tail, dense_tail;
    for (size_t i = 0; i < contexts_.size(); ++i) {
      auto metrics = contexts_[i]->Measure(*form, Measures());
      if (!metrics.ok()) return metrics.status();
      quality.harm += Harm(*metrics, dense_[i]) / static_cast<double>(contexts_.size());
      tail.Add(metrics->tail);
      dense_tail.Add(dense_[i].tail);
      for (size_t t = 0; t < metrics->tasks.size(); ++t) {
        quality.questions += metrics->tasks[t].questions;
        quality.right += metrics->tasks[t].right;
        quality.dense_right += dense_[i].tasks[t].right;
      }
    }
    quality.kl = tail.mean_kl();
    quality.top_agreement = tail.top_agreement();
    quality.bits_per_byte = tail.bits_per_byte();
    quality.dense_bits_per_byte = dense_tail.bits_per_byte();
    return quality;
  }

  absl::StatusOr<SearchResult> Finish(absl::StatusOr<SearchResult> result) {
    if (!result.ok()) return result;
    const SearchQuality& q = result->quality;
    result->profile.evidence = {
        {"method", "sensitivity of every head measured alone; Lagrangian over channels"},
        {"model", engine_.model->revision().ToHex()},
        {"ratio", absl::StrFormat("%.3f", result->ratio)},
        {"predicted_harm", absl::StrFormat("%.4g", result->predicted_harm)},
        {"measured_harm", absl::StrFormat("%.4g", q.harm)},
        {"measured_kl", absl::StrFormat("%.4g", q.kl)},
        {"measured_top1", absl::StrFormat("%.4f", q.top_agreement)},
        {"measured_bits_per_byte", absl::StrFormat("%.4f", q.bits_per_byte)},
        {"dense_bits_per_byte", absl::StrFormat("%.4f", q.dense_bits_per_byte)},
        {"recall", absl::StrFormat("%d of %d; dense %d", q.right, q.questions, q.dense_right)}};
    result->costs = std::move(costs_);
    result->sensitivities = std::move(sensitivities_);
    return result;
  }

  const EvalEngine& engine_;
  const std::span<const std::unique_ptr<EvalContext>> contexts_;
  const SearchOptions& options_;
  SearchState& state_;
  const std::function<void(absl::string_view)>& progress_;
  const KvGeometry geometry_;
  std::vector<FormMetrics> dense_;  // per context
  std::vector<HeadCosts> costs_;
  std::vector<double> sensitivities_;
};

absl::Status CheckOptions(const SearchOptions& o) {
  if (!(o.ratio >= kSmallestRatio && o.ratio <= 200)) {
    return absl::InvalidArgumentError(absl::StrCat("ratio is ", o.ratio, "; it must be 2 to 200"));
  }
  if (!(o.max_kl >= 0)) {
    return absl::InvalidArgumentError(absl::StrCat("max_kl is ", o.max_kl, "; it must be above 0"));
  }
  if (o.representations.empty()) {
    return absl::InvalidArgumentError("no representations to choose from");
  }
  return absl::OkStatus();
}

}  // namespace

double Harm(const FormMetrics& form, const FormMetrics& dense) {
  double harm = 0, tokens = 0;
  for (const float kl : form.tail.kl) harm += kl;
  tokens += static_cast<double>(form.tail.kl.size());
  for (size_t t = 0; t < form.tasks.size(); ++t) {
    // An answer that the dense model does not know says nothing about a cache.
    if (2 * dense.tasks[t].right < dense.tasks[t].questions) continue;
    const auto n = static_cast<double>(form.tasks[t].answer_tokens);
    harm += n * std::max(0.0, form.tasks[t].nll - dense.tasks[t].nll);
    tokens += n;
  }
  return tokens > 0 ? std::max(harm / tokens, 0.0) : 0;
}

absl::StatusOr<SearchResult> SearchProfile(const EvalEngine& engine,
                                           std::span<const std::unique_ptr<EvalContext>> contexts,
                                           const SearchOptions& options, SearchState& state,
                                           const std::function<void(absl::string_view)>& progress) {
  if (absl::Status s = CheckOptions(options); !s.ok()) return s;
  return Search(engine, contexts, options, state, progress).Run();
}

}  // namespace fourierkv
