#include <algorithm>
#include <cmath>
#include <numeric>

#include "clients/eval/eval_context.h"

namespace fourierkv {

void TaskScore::Add(const TaskScore& other) {
  if (other.questions == 0) return;
  const double all = questions + other.questions;
  nll = (nll * questions + other.nll * other.questions) / all;
  smallest_margin =
      questions == 0 ? other.smallest_margin : std::min(smallest_margin, other.smallest_margin);
  questions += other.questions;
  right += other.right;
  agree += other.agree;
  picks.resize(std::max(picks.size(), other.picks.size()), 0);
  for (size_t i = 0; i < other.picks.size(); ++i) picks[i] += other.picks[i];
  answer_tokens += other.answer_tokens;
  tokens_right += other.tokens_right;
  tokens_agree += other.tokens_agree;
}

void TailScore::Add(const TailScore& other) {
  nll.insert(nll.end(), other.nll.begin(), other.nll.end());
  kl.insert(kl.end(), other.kl.begin(), other.kl.end());
  same_top += other.same_top;
}

namespace {

double Mean(const std::vector<float>& values) {
  if (values.empty()) return 0;
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

double TailScore::bits_per_byte() const { return Mean(nll) / std::log(2.0); }

double TailScore::mean_kl() const { return Mean(kl); }

double TailScore::kl_quantile(double q) const {
  if (kl.empty()) return 0;
  std::vector<float> sorted = kl;
  const double rank = std::ceil(q * static_cast<double>(sorted.size())) - 1;
  const auto at =
      static_cast<size_t>(std::clamp(rank, 0.0, static_cast<double>(sorted.size() - 1)));
  std::nth_element(sorted.begin(), sorted.begin() + at, sorted.end());
  return sorted[at];
}

double TailScore::top_agreement() const {
  return kl.empty() ? 0 : static_cast<double>(same_top) / static_cast<double>(kl.size());
}

FormMetrics Combine(std::span<const FormMetrics> metrics) {
  FormMetrics all;
  for (const FormMetrics& one : metrics) {
    all.bytes.compact_payload += one.bytes.compact_payload;
    all.bytes.compact_headers += one.bytes.compact_headers;
    all.bytes.compact_dense += one.bytes.compact_dense;
    all.bytes.whole += one.bytes.whole;
    all.bytes.whole_dense += one.bytes.whole_dense;
    for (const TaskScore& task : one.tasks) {
      auto same = std::find_if(all.tasks.begin(), all.tasks.end(),
                               [&](const TaskScore& t) { return t.task == task.task; });
      if (same == all.tasks.end()) {
        all.tasks.push_back(task);
      } else {
        same->Add(task);
      }
    }
    all.tail.Add(one.tail);
    all.attention_error.resize(std::max(all.attention_error.size(), one.attention_error.size()), 0);
    for (size_t i = 0; i < one.attention_error.size(); ++i) {
      all.attention_error[i] += one.attention_error[i] / static_cast<double>(metrics.size());
    }
    all.decoded += one.decoded;
    all.decoded_agree += one.decoded_agree;
  }
  return all;
}

}  // namespace fourierkv
