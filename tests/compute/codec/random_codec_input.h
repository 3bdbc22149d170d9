// Random profiles and tensors for property tests.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "compute/base/bfloat16.h"
#include "compute/codec/profile.h"
#include "compute/codec/rotation.h"

namespace fourierkv {

inline int RandomInt(std::mt19937_64& rng, int low, int high) {
  return std::uniform_int_distribution<int>(low, high)(rng);
}

// A random orthogonal matrix: the Gram-Schmidt basis of random vectors.
inline std::vector<int16_t> RandomRotation(std::mt19937_64& rng, int head_dim) {
  std::normal_distribution<double> normal;
  const auto n = static_cast<size_t>(head_dim);
  std::vector<double> u(n * n);
  for (size_t i = 0; i < n; ++i) {
    double* const row = u.data() + i * n;
    for (size_t c = 0; c < n; ++c) row[c] = normal(rng);
    for (int pass = 0; pass < 2; ++pass) {  // twice, for rounding's sake
      for (size_t k = 0; k < i; ++k) {
        const double along = std::inner_product(row, row + n, u.data() + k * n, 0.0);
        for (size_t c = 0; c < n; ++c) row[c] -= along * u[k * n + c];
      }
    }
    const double length = std::sqrt(std::inner_product(row, row + n, row, 0.0));
    for (size_t c = 0; c < n; ++c) row[c] /= length;
  }
  return QuantizeRotation(u);
}

// Every channel in one of up to 12 bands of random kinds, spectral ones first.
inline HeadProfile RandomHead(std::mt19937_64& rng, BasisKind basis, int head_dim) {
  const int bands = RandomInt(rng, 1, 12);
  const int spectral = RandomInt(rng, 0, bands);
  const int resident_bits[] = {2, 3, 4, 8, 16};
  HeadProfile head;
  for (int b = 0; b < bands; ++b) {
    if (b < spectral) {
      const int most = basis == BasisKind::kMean ? 1 : 64;
      head.bands.push_back({RandomInt(rng, 1, most), 8 * RandomInt(rng, 1, 2), {}});
    } else {
      head.bands.push_back({0, resident_bits[RandomInt(rng, 0, 4)], {}});
    }
  }
  for (int d = 0; d < head_dim; ++d) {
    head.bands[RandomInt(rng, 0, bands - 1)].channels.push_back(static_cast<uint16_t>(d));
  }
  std::erase_if(head.bands, [](const Band& band) { return band.channels.empty(); });
  if (RandomInt(rng, 0, 2) == 0) head.rotation = RandomRotation(rng, head_dim);
  return head;
}

inline CodecProfile RandomProfile(std::mt19937_64& rng) {
  CodecProfile profile;
  profile.name = "random \"profile\" \\";
  profile.geometry = {.layers = RandomInt(rng, 1, 3),
                      .kv_heads = RandomInt(rng, 1, 3),
                      .head_dim = 8 * RandomInt(rng, 1, 9)};
  profile.basis = static_cast<BasisKind>(RandomInt(rng, 1, 3));
  profile.segment_tokens = 128 << RandomInt(rng, 0, 1);
  for (int i = RandomInt(rng, 0, 3); i > 0; --i) {
    profile.evidence["key \"" + std::to_string(i) + "\""] = std::string(i * 85, '\\');
  }
  const int heads = 2 * profile.geometry.layers * profile.geometry.kv_heads;
  for (int i = 0; i < heads; ++i) {
    profile.heads.push_back(RandomHead(rng, profile.basis, profile.geometry.head_dim));
  }
  return profile;
}

// [kv_heads][tokens][head_dim]: channels with their own mean and scale, as keys and values have.
inline std::vector<uint16_t> RandomDense(std::mt19937_64& rng, KvDtype dtype, int kv_heads,
                                         int tokens, int head_dim) {
  std::normal_distribution<float> normal;
  std::vector<uint16_t> dense(static_cast<size_t>(kv_heads) * tokens * head_dim);
  for (int h = 0; h < kv_heads; ++h) {
    for (int d = 0; d < head_dim; ++d) {
      const float mean = 4 * normal(rng);
      const float scale = std::exp(normal(rng));
      for (int t = 0; t < tokens; ++t) {
        dense[(static_cast<size_t>(h) * tokens + t) * head_dim + d] =
            FloatToKv(mean + scale * normal(rng), dtype);
      }
    }
  }
  return dense;
}

}  // namespace fourierkv
