// The float64 reference of whole sequences, and that it is what FourierAttention's authors compute.

#include "compute/codec/sequence_reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <random>

#include "compute/base/bfloat16.h"

namespace fourierkv {
namespace {

CodecProfile OneHead(const SequenceScope& scope, std::vector<Band> bands) {
  CodecProfile profile;
  profile.name = "one";
  profile.geometry = {.layers = 1, .kv_heads = 1, .head_dim = 8};
  profile.basis = BasisKind::kDft;
  profile.segment_tokens = 0;
  profile.sequence = scope;
  profile.heads = {{bands}, {bands}};
  return profile;
}

std::vector<uint16_t> RandomTokens(uint64_t seed, int64_t tokens) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> dense;
  for (int64_t i = 0; i < tokens * 8; ++i) {
    dense.push_back(FloatToBf16(static_cast<float>(i % 8) + normal(random)));
  }
  return dense;
}

// With gains and shifts the published code's own scaling and its weight of the constant cancel.
TEST(SequenceReference, RescaledIsWhatThePublishedCodeComputes) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  const SequenceScope scope{
      .sink_tokens = 2, .recent_tokens = 3, .frequencies = 7, .peak_rescale = true};
  const SequenceLayout layout(OneHead(scope, {{14, 32, {0, 1, 2, 3, 4, 5, 6, 7}}}));
  const int64_t tokens = 95, capacity = 110, n = 90, period = 105;
  const std::vector<uint16_t> dense = RandomTokens(seed, tokens);
  const SequencePart& part = layout.part(0, Part::kK);
  std::vector<std::byte> payload(part.PayloadBytes(tokens));
  reference::EncodeSequence(part, tokens, capacity, KvDtype::kBf16, dense, payload);
  const std::vector<double> decoded = reference::DecodeSequence(part, KvDtype::kBf16, payload);

  for (int d = 0; d < 8; ++d) {
    // Of the transform of the zero-padded middle, the first frequencies; their one-sided inverse
    // over the number of frequencies; then mean and largest deviation are set to the original's.
    std::vector<double> x, rebuilt(n, 0.0);
    for (int64_t t = 0; t < n; ++t) x.push_back(Bf16ToFloat(dense[(t + 2) * 8 + d]));
    for (int k = 0; k < 7; ++k) {
      double re = 0, im = 0;
      const auto angle = [&](int64_t t) {
        return 2 * std::numbers::pi * static_cast<double>(k * t) / period;
      };
      for (int64_t t = 0; t < n; ++t) {
        re += x[t] * std::cos(angle(t));
        im += x[t] * std::sin(angle(t));
      }
      for (int64_t t = 0; t < n; ++t) {
        rebuilt[t] += (re * std::cos(angle(t)) + im * std::sin(angle(t))) / 7;
      }
    }
    const auto mean = [&](const std::vector<double>& of) {
      double sum = 0;
      for (double value : of) sum += value;
      return sum / n;
    };
    const auto peak = [&](const std::vector<double>& of) {
      double largest = 0;
      for (double value : of) largest = std::max(largest, std::abs(value - mean(of)));
      return largest;
    };
    const double scale = peak(x) / peak(rebuilt);
    for (int64_t t = 0; t < n; ++t) {
      const double published = (rebuilt[t] - mean(rebuilt)) * scale + mean(x);
      ASSERT_NEAR(decoded[(t + 2) * 8 + d], published, 1e-5) << "channel " << d << " token " << t;
    }
  }
}

TEST(SequenceReference, KeepsResidentAndExactTokensBitForBit) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  const SequenceScope scope{.sink_tokens = 1, .recent_tokens = 4, .frequencies = 3};
  const SequenceLayout layout(OneHead(scope, {{0, 16, {0, 1, 2, 3, 4, 5, 6, 7}}}));
  for (int64_t tokens : {1, 5, 11, 12, 40}) {
    const std::vector<uint16_t> dense = RandomTokens(seed, tokens);
    const SequencePart& part = layout.part(0, Part::kV);
    std::vector<std::byte> payload(part.PayloadBytes(tokens));
    EXPECT_EQ(reference::EncodeSequence(part, tokens, 50, KvDtype::kBf16, dense, payload), 0);
    const std::vector<double> decoded = reference::DecodeSequence(part, KvDtype::kBf16, payload);
    for (size_t i = 0; i < dense.size(); ++i) ASSERT_EQ(decoded[i], Bf16ToFloat(dense[i])) << i;
  }
}

TEST(SequenceReference, BasisIsOrthonormalOverItsPeriod) {
  const SequenceScope scope{.frequencies = 5};
  for (int a = 0; a < scope.states(); ++a) {
    for (int b = 0; b < scope.states(); ++b) {
      double product = 0;
      for (int64_t t = 0; t < 23; ++t) {
        product += reference::SequenceBasisValue(scope, 23, a, t) *
                   reference::SequenceBasisValue(scope, 23, b, t);
      }
      EXPECT_NEAR(product, a == b && a != scope.frequencies ? 1 : 0, 1e-12) << a << " " << b;
    }
  }
}

}  // namespace
}  // namespace fourierkv
