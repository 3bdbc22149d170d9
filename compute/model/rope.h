// Rotary position embedding in the rotate-half form of Hugging Face's Llama.

#pragma once

#include <cstdint>
#include <vector>

#include "compute/model/model_config.h"

namespace fourierkv {

// Rotates channel pairs (d, d + D/2) of a head by position * frequency[d].
class Rope {
 public:
  // frequency[d] = rope_theta^(-2 d / D) in float64. "llama3" divides frequencies whose wavelength
  // is beyond original_max / low_freq_factor by `factor`, leaves those below original_max /
  // high_freq_factor alone and interpolates between.
  explicit Rope(const ModelConfig& config);

  const std::vector<double>& frequencies() const { return frequencies_; }

  // cos and sin for positions [first, first + n): [n][D/2] each.
  struct Table {
    std::vector<float> cos;
    std::vector<float> sin;
  };
  Table MakeTable(int64_t first, int n) const;

  // Rotates `heads` heads of one token in place: x [heads][D]; cos, sin: its rows of the table.
  static void Rotate(int heads, int head_dim, const float* cos, const float* sin, float* x);

 private:
  std::vector<double> frequencies_;
};

}  // namespace fourierkv
