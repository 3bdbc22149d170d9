#include "clients/search/search_probe.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "clients/eval/cache_form.h"

namespace fourierkv {
namespace {

MeasureOptions Measures() {
  return {.recall = true, .tail = true, .attention = false, .decoded_per_task = 0};
}

}  // namespace

std::string SearchQuality::ToString() const {
  return absl::StrFormat(
      "KL %.5f nats, top-1 agreement %.2f%%, bits per byte %.4f (dense %.4f), recall %d of %d "
      "(dense %d)",
      kl, 100 * top_agreement, bits_per_byte, dense_bits_per_byte, right, questions, dense_right);
}

double Harm(const FormMetrics& form, const FormMetrics& dense) {
  double harm = 0;
  for (const float kl : form.tail.kl) harm += kl;
  auto tokens = static_cast<double>(form.tail.kl.size());
  for (size_t t = 0; t < form.tasks.size(); ++t) {
    // An answer that the dense model does not know says nothing about a cache.
    if (2 * dense.tasks[t].right < dense.tasks[t].questions) continue;
    const auto n = static_cast<double>(form.tasks[t].answer_tokens);
    harm += n * std::max(0.0, form.tasks[t].nll - dense.tasks[t].nll);
    tokens += n;
  }
  return tokens > 0 ? std::max(harm / tokens, 0.0) : 0;
}

absl::StatusOr<SearchProbe> SearchProbe::Create(
    const EvalEngine& engine, std::span<const std::unique_ptr<EvalContext>> contexts) {
  SearchProbe probe(engine, contexts);
  const auto form = MakeDenseForm(engine.backend);
  for (const auto& context : contexts) {
    auto metrics = context->Measure(*form, Measures());
    if (!metrics.ok()) return metrics.status();
    probe.dense_.push_back(*std::move(metrics));
  }
  return probe;
}

absl::StatusOr<SearchQuality> SearchProbe::Measure(const CacheForm& form) const {
  SearchQuality quality;
  TailScore tail, dense_tail;
  for (size_t i = 0; i < contexts_.size(); ++i) {
    auto metrics = contexts_[i]->Measure(form, Measures());
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

}  // namespace fourierkv
