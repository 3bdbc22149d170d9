// What logits say.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

namespace fourierkv {

inline double LogSumExp(std::span<const float> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  return max + std::log(sum);
}

// Negative log-likelihood of `token` in nats.
inline double Nll(std::span<const float> logits, int32_t token) {
  return LogSumExp(logits) - logits[token];
}

// Ties go to the smallest id, as in the sampler.
inline int32_t Likeliest(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Logit of `token` - the largest other one.
inline double Margin(std::span<const float> logits, int32_t token) {
  double other = -INFINITY;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (static_cast<int32_t>(i) != token) other = std::max<double>(other, logits[i]);
  }
  return logits[token] - other;
}

// KL(p || q) of the softmax distributions in nats, at least 0.
inline double KlDivergence(std::span<const float> p, std::span<const float> q) {
  const double p_sum = LogSumExp(p), q_sum = LogSumExp(q);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const double log_p = p[i] - p_sum;
    kl += std::exp(log_p) * (log_p - (q[i] - q_sum));
  }
  return std::max(kl, 0.0);
}

}  // namespace fourierkv
