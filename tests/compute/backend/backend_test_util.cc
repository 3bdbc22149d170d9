#include "tests/compute/backend/backend_test_util.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/reference_codec.h"
#include "gtest/gtest.h"
#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv {

uint64_t FreshSeed() { return std::random_device{}(); }

std::string CodecCase::Name() const {
  return absl::StrCat(
      "D", head_dim, " heads", kv_heads, " S", segment_tokens, " ", BasisName(basis), " M[",
      absl::StrJoin(coefficients, ","), "] bf16 M[", absl::StrJoin(wide_coefficients, ","),
      "] bits[", absl::StrJoin(resident_bits, ","), "] ", dtype == KvDtype::kBf16 ? "bf16" : "fp16",
      rotate_k ? ", K rotated" : "", rotate_v ? ", V rotated" : "");
}

std::vector<CodecCase> CodecCases() {
  constexpr auto kDct = BasisKind::kDct2;
  constexpr auto kDft = BasisKind::kDft;
  constexpr auto kMean = BasisKind::kMean;
  constexpr auto kBf16 = KvDtype::kBf16;
  constexpr auto kFp16 = KvDtype::kFp16;
  return {
      {128, 2, 256, kDct, {8}, {4}, kBf16},
      {64, 3, 128, kDct, {1}, {8}, kBf16},
      {80, 2, 256, kDft, {3}, {16}, kBf16},
      {96, 1, 512, kDct, {2, 16}, {8, 4}, kBf16},
      {128, 1, 1024, kDft, {32}, {4}, kBf16},
      {256, 1, 256, kDct, {64, 8, 3}, {16, 8, 4}, kBf16},
      {64, 2, 256, kMean, {1}, {4, 16}, kBf16},
      {8, 2, 128, kDct, {2}, {4}, kBf16},
      {128, 2, 256, kDct, {8}, {}, kBf16},
      {128, 2, 128, kDct, {}, {4}, kBf16},
      {72, 1, 256, kDct, {}, {16}, kBf16},
      {128, 2, 256, kDct, {8}, {4}, kFp16},
      {104, 1, 512, kDft, {5, 64}, {4, 8, 16}, kFp16},
      {40, 2, 128, kDct, {7}, {8, 16}, kFp16},
      {128, 2, 256, kDct, {8}, {2}, kBf16},
      {128, 1, 128, kDct, {}, {3}, kBf16},
      {72, 2, 128, kDct, {2}, {2, 3, 8}, kBf16},
      {64, 2, 512, kDct, {4}, {2, 3, 4}, kFp16},
      {80, 1, 1024, kDft, {3}, {3, 2}, kBf16},
      {48, 1, 256, kDct, {}, {3, 2, 16}, kFp16},
      {128, 1, 256, kDct, {8}, {3, 4}, kBf16, {16}},
      {96, 1, 128, kMean, {}, {3}, kFp16, {1}},
      {64, 1, 512, kDct, {}, {}, kBf16, {64, 5}},
      {128, 2, 256, kDct, {8}, {4}, kBf16, {}, false, true},
      {64, 2, 128, kDct, {4}, {2, 3, 4, 8, 16}, kBf16, {5}, true, true},
      {80, 1, 512, kDft, {3}, {3}, kFp16, {}, true, false},
      {128, 1, 1024, kDct, {32}, {2}, kBf16, {}, false, true},
      {8, 2, 128, kDct, {2}, {16}, kFp16, {}, true, true},
      {104, 1, 256, kDct, {}, {3, 16}, kBf16, {7}, true, true},
  };
}

std::unique_ptr<ProfileLayout> RandomLayout(const CodecCase& test, std::mt19937_64& random) {
  CodecProfile profile;
  profile.name = "random";
  profile.geometry = {1, test.kv_heads, test.head_dim};
  profile.basis = test.basis;
  profile.segment_tokens = test.segment_tokens;
  profile.heads.resize(static_cast<size_t>(test.kv_heads) * 2);
  for (size_t i = 0; i < profile.heads.size(); ++i) {
    HeadProfile& head = profile.heads[i];
    if (test.rotated(kParts[i % 2])) head.rotation = RandomRotation(random, test.head_dim);
    for (int m : test.coefficients) head.bands.push_back({m, 8, {}});
    for (int m : test.wide_coefficients) head.bands.push_back({m, 16, {}});
    for (int bits : test.resident_bits) head.bands.push_back({0, bits, {}});
    std::vector<uint16_t> order(test.head_dim);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    std::uniform_int_distribution<size_t> any(0, head.bands.size() - 1);
    for (size_t c = 0; c < order.size(); ++c) {
      // Every band gets one channel first, the rest fall at random.
      head.bands[c < head.bands.size() ? c : any(random)].channels.push_back(order[c]);
    }
    for (Band& band : head.bands) std::sort(band.channels.begin(), band.channels.end());
  }
  const absl::Status status = profile.Validate();
  if (!status.ok()) ADD_FAILURE() << status;
  return std::make_unique<ProfileLayout>(profile);
}

std::vector<uint16_t> RandomKv(int heads, int tokens, int head_dim, KvDtype dtype,
                               std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> kinds(0, 9);
  std::vector<uint16_t> dense(static_cast<size_t>(heads) * tokens * head_dim);
  for (int h = 0; h < heads; ++h) {
    for (int c = 0; c < head_dim; ++c) {
      const int kind = kinds(random);
      const float centre = normal(random) * (kind == 2 ? 20 : 1);
      const float noise = kind < 2 ? 0 : 0.3f;
      float drift = 0;
      for (int t = 0; t < tokens; ++t) {
        drift = 0.98f * drift + 0.1f * normal(random) * (noise > 0);
        const float value = kind == 0 ? 0 : centre + drift + noise * normal(random);
        dense[(static_cast<size_t>(h) * tokens + t) * head_dim + c] = FloatToKv(value, dtype);
      }
    }
  }
  return dense;
}

std::vector<float> RandomQueries(int64_t count, float deviation, std::mt19937_64& random) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> q(count);
  for (float& x : q) x = normal(random);
  return q;
}

TestCache::TestCache(const CodecCase& test, int compact, std::vector<int> exact,
                     std::mt19937_64& random)
    : test_(test), layout_(RandomLayout(test, random)), k_(test.kv_heads), v_(test.kv_heads) {
  for (int i = 0; i < compact; ++i) {
    std::vector<double> decoded[2];
    for (Part part : kParts) {
      const PartLayout& layout = layout_->part(0, part);
      const auto dense =
          RandomKv(test.kv_heads, test.segment_tokens, test.head_dim, test.dtype, random);
      std::vector<std::byte> payload(layout.payload_bytes);
      reference::EncodePart(layout, test.dtype, dense, payload);
      decoded[static_cast<int>(part)] = reference::DecodePart(layout, payload);
      payloads_.push_back(std::move(payload));
    }
    compact_.push_back({payloads_[2 * i].data(), payloads_[2 * i + 1].data()});
    Append(decoded[0], decoded[1], test.segment_tokens);
  }
  for (size_t i = 0; i < exact.size(); ++i) {
    std::vector<double> values[2];
    for (auto& part : values) {
      exact_data_.push_back(RandomKv(test.kv_heads, exact[i], test.head_dim, test.dtype, random));
      for (uint16_t bits : exact_data_.back()) part.push_back(KvToFloat(bits, test.dtype));
    }
    exact_.push_back({exact_data_[2 * i].data(), exact_data_[2 * i + 1].data(), exact[i],
                      static_cast<int64_t>(exact[i]) * test.head_dim});
    Append(values[0], values[1], exact[i]);
  }
}

void TestCache::Append(const std::vector<double>& k, const std::vector<double>& v, int tokens) {
  const int64_t size = static_cast<int64_t>(tokens) * test_.head_dim;
  for (int h = 0; h < test_.kv_heads; ++h) {
    k_[h].insert(k_[h].end(), k.begin() + h * size, k.begin() + (h + 1) * size);
    v_[h].insert(v_[h].end(), v.begin() + h * size, v.begin() + (h + 1) * size);
  }
  tokens_ += tokens;
}

LayerKv TestCache::View() const {
  LayerKv kv;
  kv.kv_heads = test_.kv_heads;
  kv.head_dim = test_.head_dim;
  kv.dtype = test_.dtype;
  kv.k_layout = &layout_->part(0, Part::kK);
  kv.v_layout = &layout_->part(0, Part::kV);
  kv.compact = compact_;
  kv.exact = exact_;
  return kv;
}

TestCache::Expected TestCache::Attend(const std::vector<float>& q, int query_tokens,
                                      int query_heads, double scale) const {
  const int d = test_.head_dim;
  const int group = query_heads / test_.kv_heads;
  Expected expected;
  expected.out.resize(q.size());
  expected.lse.resize(static_cast<size_t>(query_tokens) * query_heads);
  for (int i = 0; i < query_tokens; ++i) {
    const int64_t visible = tokens_ - (query_tokens - 1 - i);
    for (int h = 0; h < test_.kv_heads; ++h) {
      const size_t row = static_cast<size_t>(i) * query_heads + h * group;
      const std::vector<double> of_head(q.begin() + row * d, q.begin() + (row + group) * d);
      reference::Attend(of_head, std::span(k_[h]).first(visible * d),
                        std::span(v_[h]).first(visible * d), group, visible, d, scale,
                        std::span(expected.out).subspan(row * d, static_cast<size_t>(group) * d),
                        std::span(expected.lse).subspan(row, group));
    }
  }
  return expected;
}

double RelativeError(const std::vector<float>& a, const std::vector<double>& b) {
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
}

}  // namespace fourierkv
