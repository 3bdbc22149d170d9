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
// Per value, while a head's sensitivity is measured: coarse enough to be felt. The same for every
// budget, so that one set of measurements serves them all.
constexpr double kProbeBits = 0.8;

int64_t SegmentBytes(const ProfileLayout& layout) {
  return layout.SegmentPayloadBytes() +
         int64_t{kBlobHeaderBytes} * 2 * layout.profile().geometry.layers;
}

class Search {
 public:
  Search(const SearchProbe& probe, const SearchOptions& options, SearchState& state,
         const std::function<void(absl::string_view)>& progress)
      : probe_(probe),
        engine_(probe.engine()),
        options_(options),
        state_(state),
        progress_(progress),
        geometry_(engine_.model->config().Geometry()) {}

  absl::StatusOr<SearchResult> Run() {
    progress_("trying every representation of every channel");
    auto costs = CollectCosts(engine_, probe_.contexts(), options_.representations, options_.costs);
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

  // Each head alone.
  absl::Status MeasureSensitivities() {
    for (size_t i = 0; i < costs_.size(); ++i) {
      const HeadPlace place = Place(i);
      const double one = 1;
      auto allocation_of_head = Allocate(std::span(&costs_[i], 1), std::span(&one, 1),
                                         options_.representations, kProbeBits, allocation());
      if (!allocation_of_head.ok()) return allocation_of_head.status();
      const auto form = MakeOneHeadForm(
          geometry_, place,
          MakeHeadProfile(costs_[i], allocation_of_head->heads[0], options_.representations),
          options_.costs.basis, options_.costs.segment_tokens, options_.costs.recent_window,
          engine_.backend);
      const std::string key = absl::StrCat("harm of ", form->name());
      std::optional<double> harm = state_.Find(key);
      if (!harm.has_value()) {
        const auto measured = probe_.Measure(*form);
        if (!measured.ok()) return measured.status();
        harm = measured->harm;
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
    const auto form =
        MakeCompactForm(result.profile.name, std::make_shared<const ProfileLayout>(result.profile),
                        options_.costs.recent_window, engine_.backend);
    const auto quality = probe_.Measure(*form);
    if (!quality.ok()) return quality.status();
    result.quality = *quality;
    progress_(absl::StrFormat("%.2f x: %s", result.ratio, quality->ToString()));
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

  const SearchProbe& probe_;
  const EvalEngine& engine_;
  const SearchOptions& options_;
  SearchState& state_;
  const std::function<void(absl::string_view)>& progress_;
  const KvGeometry geometry_;
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

absl::StatusOr<SearchResult> SearchProfile(const SearchProbe& probe, const SearchOptions& options,
                                           SearchState& state,
                                           const std::function<void(absl::string_view)>& progress) {
  if (absl::Status s = CheckOptions(options); !s.ok()) return s;
  return Search(probe, options, state, progress).Run();
}

}  // namespace fourierkv
