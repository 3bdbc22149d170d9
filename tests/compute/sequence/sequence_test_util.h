// Random sequence profiles and tensors.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "compute/base/bfloat16.h"
#include "compute/codec/profile.h"
#include "compute/codec/sequence_layout.h"

namespace fourierkv {

inline uint64_t FreshSeed() { return std::random_device()(); }

// `spectral` random channels of each head spectral, in `bits`; heads[0] all, heads[1] none.
inline CodecProfile RandomSequenceProfile(std::mt19937_64& random, const KvGeometry& geometry,
                                          const SequenceScope& scope, int bits) {
  CodecProfile profile;
  profile.name = "random";
  profile.geometry = geometry;
  profile.basis = BasisKind::kDft;
  profile.segment_tokens = 0;
  profile.sequence = scope;
  const int heads = 2 * geometry.layers * geometry.kv_heads;
  for (int i = 0; i < heads; ++i) {
    const double share = i == 0 ? 1 : i == 1 ? 0 : std::uniform_real_distribution(0.0, 1.0)(random);
    Band spectral{scope.states(), bits, {}}, resident{0, 16, {}};
    for (int d = 0; d < geometry.head_dim; ++d) {
      const bool is_spectral = std::uniform_real_distribution(0.0, 1.0)(random) < share;
      (is_spectral ? spectral : resident).channels.push_back(static_cast<uint16_t>(d));
    }
    HeadProfile& head = profile.heads.emplace_back();
    if (!spectral.channels.empty()) head.bands.push_back(spectral);
    if (!resident.channels.empty()) head.bands.push_back(resident);
  }
  return profile;
}

// [kv_heads][tokens][head_dim]: channels with their own mean, a slow wave and noise.
inline std::vector<uint16_t> RandomSequence(std::mt19937_64& random, KvDtype dtype, int kv_heads,
                                            int64_t tokens, int head_dim) {
  std::normal_distribution<double> normal;
  std::vector<uint16_t> dense(static_cast<size_t>(kv_heads) * tokens * head_dim);
  for (int h = 0; h < kv_heads; ++h) {
    for (int d = 0; d < head_dim; ++d) {
      const double mean = normal(random), wave = normal(random), noise = 0.3 * normal(random);
      const double speed = 20 * std::abs(normal(random)) / static_cast<double>(tokens);
      for (int64_t t = 0; t < tokens; ++t) {
        const double x =
            mean + wave * std::sin(speed * static_cast<double>(t)) + noise * normal(random);
        dense[(h * tokens + t) * head_dim + d] = FloatToKv(static_cast<float>(x), dtype);
      }
    }
  }
  return dense;
}

// ||a - b|| / ||b||; 0 if both are 0.
template <typename A, typename B>
double RelativeDistance(const A& a, const B& b) {
  double distance = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    distance += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return distance == 0 ? 0 : std::sqrt(distance / size);
}

}  // namespace fourierkv
