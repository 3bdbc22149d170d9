#include "compute/model/rope.h"

#include <cmath>
#include <numbers>

namespace fourierkv {
namespace {

double Llama3Scaled(double frequency, const Llama3RopeScaling& s) {
  const double wavelength = 2 * std::numbers::pi / frequency;
  const double turns = static_cast<double>(s.original_max_position_embeddings) / wavelength;
  if (turns < s.low_freq_factor) return frequency / s.factor;
  if (turns > s.high_freq_factor) return frequency;
  const double smooth = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor);
  return (1 - smooth) * frequency / s.factor + smooth * frequency;
}

}  // namespace

Rope::Rope(const ModelConfig& config) : frequencies_(config.head_dim / 2) {
  for (size_t d = 0; d < frequencies_.size(); ++d) {
    const double frequency =
        std::pow(config.rope_theta, -2.0 * static_cast<double>(d) / config.head_dim);
    frequencies_[d] = config.llama3_rope ? Llama3Scaled(frequency, config.rope_scaling) : frequency;
  }
}

Rope::Table Rope::MakeTable(int64_t first, int n) const {
  Table table;
  table.cos.reserve(n * frequencies_.size());
  table.sin.reserve(n * frequencies_.size());
  for (int i = 0; i < n; ++i) {
    for (double frequency : frequencies_) {
      const double angle = static_cast<double>(first + i) * frequency;
      table.cos.push_back(static_cast<float>(std::cos(angle)));
      table.sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return table;
}

void Rope::Rotate(int heads, int head_dim, const float* cos, const float* sin, float* x) {
  const int half = head_dim / 2;
  for (int h = 0; h < heads; ++h) {
    float* low = x + static_cast<int64_t>(h) * head_dim;
    float* high = low + half;
    for (int d = 0; d < half; ++d) {
      const float a = low[d], b = high[d];
      low[d] = a * cos[d] - b * sin[d];
      high[d] = b * cos[d] + a * sin[d];
    }
  }
}

}  // namespace fourierkv
