// Random K, V and queries for cache tests.

#pragma once

#include <memory>
#include <random>
#include <vector>

#include "compute/base/bfloat16.h"
#include "compute/base/geometry.h"
#include "compute/cache/kv_cache.h"
#include "compute/codec/profile.h"
#include "compute/codec/segment_layout.h"

namespace fourierkv {

inline constexpr KvGeometry kTestGeometry{2, 2, 16};
inline constexpr int kTestQueryHeads = 4;
inline constexpr int kTestSegment = 128;

inline std::vector<float> RandomFloats(std::mt19937& random, size_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

inline std::vector<uint16_t> RandomKv(std::mt19937& random, size_t n) {
  std::vector<uint16_t> values;
  for (float value : RandomFloats(random, n)) values.push_back(FloatToBf16(value));
  return values;
}

// K and V of every layer of some tokens, token by token: [tokens][kv_heads][head_dim].
struct TokenKv {
  std::vector<std::vector<float>> k, v;
};

inline TokenKv RandomTokens(std::mt19937& random, int64_t tokens) {
  TokenKv kv;
  for (int l = 0; l < kTestGeometry.layers; ++l) {
    const size_t size = tokens * kTestGeometry.kv_heads * kTestGeometry.head_dim;
    kv.k.push_back(RandomFloats(random, size));
    kv.v.push_back(RandomFloats(random, size));
  }
  return kv;
}

// Appends tokens [first, first + n) of `kv` to every layer and advances.
inline absl::Status AppendAll(KvCache& cache, const TokenKv& kv, int64_t first, int n) {
  const int64_t at = first * kTestGeometry.kv_heads * kTestGeometry.head_dim;
  for (int l = 0; l < kTestGeometry.layers; ++l) {
    absl::Status s = cache.Append(l, n, kv.k[l].data() + at, kv.v[l].data() + at);
    if (!s.ok()) return s;
  }
  return cache.Advance(n);
}

// The same tokens as installed from a store: [kv_heads][n][head_dim] in bf16.
inline std::vector<uint16_t> ByHead(const std::vector<float>& tokens, int64_t first, int64_t n) {
  const int heads = kTestGeometry.kv_heads, d = kTestGeometry.head_dim;
  std::vector<uint16_t> out;
  for (int h = 0; h < heads; ++h) {
    for (int64_t t = first; t < first + n; ++t) {
      for (int c = 0; c < d; ++c) out.push_back(FloatToBf16(tokens[(t * heads + h) * d + c]));
    }
  }
  return out;
}

inline std::shared_ptr<const ProfileLayout> TestLayout(double k_spectral = 0.5,
                                                       double v_spectral = 0.5) {
  CodecProfile profile = UniformProfile(kTestGeometry, k_spectral, v_spectral, 4, 8);
  profile.segment_tokens = kTestSegment;
  return std::make_shared<const ProfileLayout>(profile);
}

}  // namespace fourierkv
