#include "compute/model/sampler.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace fourierkv {

absl::StatusOr<Sampler> Sampler::Create(const SamplingOptions& options) {
  // Written so that NaN fails.
  if (!(options.temperature >= 0 && options.temperature <= 100)) {
    return absl::InvalidArgumentError(
        absl::StrCat("temperature is ", options.temperature, "; it must be 0 to 100"));
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_p is ", options.top_p, "; it must be above 0 and at most 1"));
  }
  return Sampler(options);
}

absl::StatusOr<SampledToken> Sampler::Next(std::span<const float> logits) {
  if (logits.empty()) return absl::InvalidArgumentError("there are no logits to sample from");
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!std::isfinite(logits[i])) {
      return absl::InternalError(absl::StrCat("the logit of token ", i, " is ", logits[i],
                                              ": the cache or the weights are damaged"));
    }
  }
  const auto best = std::max_element(logits.begin(), logits.end());
  const int32_t token =
      options_.temperature == 0 ? static_cast<int32_t>(best - logits.begin()) : Draw(logits, *best);
  double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit) - *best);
  return SampledToken{token, static_cast<double>(logits[token]) - *best - std::log(sum)};
}

int32_t Sampler::Draw(std::span<const float> logits, float max) {
  candidates_.clear();
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp((static_cast<double>(logits[i]) - max) / options_.temperature);
    candidates_.emplace_back(weight, static_cast<int32_t>(i));
    total += weight;
  }
  if (options_.top_p < 1) {
    std::sort(candidates_.begin(), candidates_.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
    const double enough = options_.top_p * total;
    size_t kept = 0;
    total = 0;
    while (kept < candidates_.size() && (kept == 0 || total < enough)) {
      total += candidates_[kept++].first;
    }
    candidates_.resize(kept);
  }
  const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53;  // [0, 1)
  double rest = uniform * total;
  for (const auto& [weight, id] : candidates_) {
    rest -= weight;
    if (rest < 0) return id;
  }
  return candidates_.back().second;  // rounding used up the last weight
}

}  // namespace fourierkv
