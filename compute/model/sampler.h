// Chooses the next token from logits.

#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace fourierkv {

struct SamplingOptions {
  double temperature = 0;  // 0 to 100; 0 is greedy
  double top_p = 1;        // in (0, 1]: only the likeliest tokens that together reach it
  uint64_t seed = 0;
};

struct SampledToken {
  int32_t token = 0;
  // Natural log of the token's probability as the model gave it: before temperature and top_p.
  double log_probability = 0;
};

// One sequence; one thread. The same options and logits give the same tokens on every machine,
// whatever its standard library.
class Sampler {
 public:
  // InvalidArgument, naming the field, for options out of bounds.
  static absl::StatusOr<Sampler> Create(const SamplingOptions& options);

  // Whether Next takes the likeliest token, with nothing drawn.
  bool greedy() const { return options_.temperature == 0; }

  // Greedy ties go to the smallest id. InvalidArgument for no logits; Internal for logits that are
  // not finite: a damaged cache or model must not become text.
  absl::StatusOr<SampledToken> Next(std::span<const float> logits);

 private:
  explicit Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {}
  int32_t Draw(std::span<const float> logits, float max);

  SamplingOptions options_;
  std::mt19937_64 random_;  // its output is fixed by the C++ standard, unlike the distributions'
  std::vector<std::pair<double, int32_t>> candidates_;  // weight, id
};

}  // namespace fourierkv
