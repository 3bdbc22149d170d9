#include "compute/codec/reference_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv::reference {
namespace {

// One head of one band, with a function that gives token t of channel d.
struct OneBand {
  OneBand(int coefficients, int bits, int segment_tokens, BasisKind basis = BasisKind::kDct2) {
    profile.name = "one band";
    profile.geometry = {.layers = 1, .kv_heads = 1, .head_dim = 8};
    profile.basis = basis;
    profile.segment_tokens = segment_tokens;
    profile.heads.assign(2, {{{coefficients, bits, {0, 1, 2, 3, 4, 5, 6, 7}}}});
    layout = std::make_unique<ProfileLayout>(profile);
    payload.resize(part().payload_bytes);
  }

  const PartLayout& part() const { return layout->part(0, Part::kK); }
  const BandLayout& band() const { return part().heads[0].bands[0]; }

  // Encodes, and decodes into `decoded`.
  template <typename Function>
  double RoundTrip(Function value, KvDtype dtype = KvDtype::kBf16) {
    dense.clear();
    for (int t = 0; t < profile.segment_tokens; ++t) {
      for (int d = 0; d < 8; ++d) dense.push_back(FloatToKv(value(t, d), dtype));
    }
    const double error = EncodePart(part(), dtype, dense, payload);
    decoded = DecodePart(part(), payload);
    return error;
  }

  double Bf16At(int64_t at) const {
    return Bf16ToFloat(static_cast<uint16_t>(std::to_integer<int>(payload[at]) |
                                             std::to_integer<int>(payload[at + 1]) << 8));
  }

  CodecProfile profile;
  std::unique_ptr<ProfileLayout> layout;
  std::vector<uint16_t> dense;
  std::vector<std::byte> payload;
  std::vector<double> decoded;
};

TEST(ReferenceResident, Bf16InputIsCopiedExactlyAt16Bits) {
  OneBand c(0, 16, 128);
  EXPECT_EQ(c.RoundTrip([](int t, int d) { return std::sin(t + d) * 1e3f; }), 0);
  for (size_t i = 0; i < c.dense.size(); ++i) {
    ASSERT_EQ(c.decoded[i], Bf16ToFloat(c.dense[i]));
  }
}

TEST(ReferenceResident, Fp16InputIsRoundedToBf16At16Bits) {
  OneBand c(0, 16, 128);
  EXPECT_EQ(c.RoundTrip([](int, int) { return 1.0f + 0x1p-8f; }, KvDtype::kFp16),
            0x1p-8 / (1 + 0x1p-8));
  EXPECT_EQ(c.decoded[0], 1.0);  // halfway, to even
}

TEST(ReferenceResident, Int4TokensStandInInterleavedNibblesOfWords) {
  OneBand c(0, 4, 128);
  // Values 0..15 exactly: offset 0, scale 1. Each token's value is that of its nibble's position.
  c.RoundTrip([](int t, int d) { return static_cast<float>((t / 16 + t + d) % 16); });
  const int words = 128 / 8;
  for (int d = 0; d < 8; ++d) {
    EXPECT_EQ(c.Bf16At(c.band().scale_offset + 2 * d), 1);
    EXPECT_EQ(c.Bf16At(c.band().zero_offset + 2 * d), 0);
    for (int t = 0; t < 128; ++t) {
      const int64_t at = c.band().data_offset + 4 * (d * words + t % words);
      uint32_t word = 0;
      for (int i = 0; i < 4; ++i) word |= std::to_integer<uint32_t>(c.payload[at + i]) << (8 * i);
      ASSERT_EQ(word >> (4 * (t / words)) & 15, (t / 16 + t + d) % 16) << "token " << t;
    }
  }
}

// The word that holds token t of channel d in a plane of `width` bits per token, at that token.
uint32_t PlaneBits(const OneBand& c, int64_t offset, int width, int d, int t) {
  const int words = c.profile.segment_tokens * width / 32;
  const int64_t at = offset + 4 * (d * words + t % words);
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= std::to_integer<uint32_t>(c.payload[at + i]) << (8 * i);
  return word >> (width * (t / words)) & ((1u << width) - 1);
}

TEST(ReferenceResident, NarrowTokensStandInPlanesOfInterleavedBits) {
  for (const int tokens : {128, 256, 512, 1024}) {
    OneBand two(0, 2, tokens);
    two.RoundTrip([](int t, int d) { return static_cast<float>((t / 8 + t + d) % 4); });
    OneBand three(0, 3, tokens);
    three.RoundTrip([](int t, int d) { return static_cast<float>((t / 8 + t + d) % 8); });
    EXPECT_EQ(two.Bf16At(two.band().scale_offset), 1);
    EXPECT_EQ(three.Bf16At(three.band().scale_offset), 1);
    for (int d = 0; d < 8; ++d) {
      for (int t = 0; t < tokens; ++t) {
        const uint32_t code = t / 8 + t + d;
        ASSERT_EQ(PlaneBits(two, two.band().data_offset, 2, d, t), code % 4);
        ASSERT_EQ(PlaneBits(three, three.band().data_offset, 2, d, t), code % 4);
        ASSERT_EQ(PlaneBits(three, three.band().high_offset, 1, d, t), code / 4 % 2);
      }
    }
    EXPECT_EQ(two.decoded[8 * 3], 3) << "token 3 of channel 0";
    EXPECT_EQ(three.decoded[8 * 6], 6) << "token 6 of channel 0";
  }
}

TEST(ReferenceResident, NarrowGridsClipOutliersForAFinerStep) {
  std::mt19937_64 rng(std::random_device{}());
  std::normal_distribution<float> normal;
  for (const int bits : {2, 3}) {
    OneBand c(0, bits, 256);
    // The error of a normal distribution on the grid over its whole range would be more than these.
    EXPECT_LT(c.RoundTrip([&](int, int) { return normal(rng); }), bits == 2 ? 0.4 : 0.225);
    EXPECT_GT(c.RoundTrip([&](int, int) { return normal(rng); }), bits == 2 ? 0.3 : 0.15);
    // One outlier among zeros is worth the range.
    EXPECT_LT(c.RoundTrip([](int t, int) { return t == 9 ? 100.0f : 0.0f; }), 0.01);
  }
}

TEST(ReferenceResident, Int8TokensStandInOrder) {
  OneBand c(0, 8, 256);
  EXPECT_EQ(c.RoundTrip([](int t, int) { return static_cast<float>(t - 128); }), 0);
  for (int t = 0; t < 256; ++t) {
    ASSERT_EQ(std::to_integer<int>(c.payload[c.band().data_offset + 256 * 5 + t]), t);
  }
}

TEST(ReferenceResident, ConstantChannelsHaveScaleZeroAndAreExact) {
  for (const int bits : {2, 3, 4, 8}) {
    OneBand c(0, bits, 128);
    EXPECT_EQ(c.RoundTrip([](int, int d) { return d - 3.5f; }), 0);
    EXPECT_EQ(c.Bf16At(c.band().scale_offset), 0);
    EXPECT_EQ(c.Bf16At(c.band().zero_offset), -3.5);
  }
}

TEST(ReferenceResident, ErrorIsAtMostHalfAStep) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp16}) {
    for (const int bits : {4, 8}) {
      OneBand c(0, bits, 128);
      std::normal_distribution<float> normal;
      c.RoundTrip([&](int, int d) { return 10.0f * d + normal(rng); }, dtype);
      for (int t = 0; t < 128; ++t) {
        for (int d = 0; d < 8; ++d) {
          const double step = c.Bf16At(c.band().scale_offset + 2 * d);
          const double value = KvToFloat(c.dense[t * 8 + d], dtype);
          ASSERT_LE(std::abs(c.decoded[t * 8 + d] - value), step / 2 * (1 + 1e-12));
        }
      }
    }
  }
}

TEST(ReferenceSpectral, ASignalInTheSpanOfTheBasisLosesOnlyItsQuantisation) {
  for (const BasisKind kind : {BasisKind::kDct2, BasisKind::kDft}) {
    OneBand c(8, 8, 256, kind);
    const double error = c.RoundTrip([&](int t, int d) {
      return static_cast<float>(30 * BasisValue(kind, 256, d, t) +
                                50 * BasisValue(kind, 256, 0, t));
    });
    EXPECT_LT(error, 0.01);
  }
}

TEST(ReferenceSpectral, Bf16CoefficientsAreProjectionsRoundedOnce) {
  OneBand c(3, 16, 128);
  c.RoundTrip([](int t, int d) { return std::sin(0.02f * t + d); });
  for (int m = 0; m < 3; ++m) {
    for (int d = 0; d < 8; ++d) {
      double projection = 0;
      for (int t = 0; t < 128; ++t) {
        projection += BasisValue(BasisKind::kDct2, 128, m, t) * Bf16ToFloat(c.dense[8 * t + d]);
      }
      ASSERT_EQ(c.Bf16At(c.band().data_offset + 2 * (m * 8 + d)),
                Bf16ToFloat(FloatToBf16(static_cast<float>(projection))));
    }
  }
}

TEST(ReferenceRotation, CompressesTheTurnedChannelsAndTurnsThemBack) {
  // Channels that are all multiples of one signal: after the right rotation one channel has it all.
  OneBand c(0, 16, 128);
  std::vector<double> u(64);
  for (int d = 0; d < 8; ++d) {  // a reflection that takes (1, ..., 1) / sqrt(8) to the first axis
    for (int j = 0; j < 8; ++j) {
      const double a = 1 / std::sqrt(8.0) - (d == 0);
      const double b = 1 / std::sqrt(8.0) - (j == 0);
      u[d * 8 + j] = (d == j) - a * b / (1 - 1 / std::sqrt(8.0));
    }
  }
  HeadProfile head;
  head.bands = {{0, 16, {0}}, {0, 2, {1, 2, 3, 4, 5, 6, 7}}};
  head.rotation = QuantizeRotation(u);
  c.profile.heads.assign(2, head);
  ASSERT_TRUE(c.profile.Validate().ok());
  c.layout = std::make_unique<ProfileLayout>(c.profile);
  c.payload.resize(c.part().payload_bytes);
  const double error = c.RoundTrip([](int t, int) { return std::sin(0.3f * t); });
  EXPECT_LT(error, 0.003);  // bf16's
  EXPECT_NEAR(c.Bf16At(c.band().data_offset + 2 * 5), std::sqrt(8.0) * std::sin(1.5), 0.01);
  EXPECT_NEAR(c.decoded[8 * 5 + 3], std::sin(1.5), 0.01);
}

TEST(ReferenceSpectral, MeanKeepsTheMeanOnly) {
  OneBand c(1, 8, 128, BasisKind::kMean);
  c.RoundTrip([](int t, int d) { return d + (t % 2 == 0 ? 0.5f : -0.5f); });
  for (int d = 0; d < 8; ++d) EXPECT_NEAR(c.decoded[d], d, 0.01 * d + 1e-12);
}

// Because the basis is orthonormal, ||x - x^||^2 = ||x||^2 - ||c||^2 + ||c - c^||^2.
TEST(ReferenceSpectral, RelativeErrorFollowsFromTheCoefficients) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal;
  for (const BasisKind kind : {BasisKind::kDct2, BasisKind::kDft}) {
    const int m_count = 5;
    OneBand c(m_count, 8, 128, kind);
    const double error = c.RoundTrip([&](int, int d) { return normal(rng) + d; });
    double energy = 0;
    double residual = 0;
    for (int d = 0; d < 8; ++d) {
      for (int t = 0; t < 128; ++t) {
        const double x = Bf16ToFloat(c.dense[t * 8 + d]);
        energy += x * x;
        residual += x * x;
      }
      const double scale = c.Bf16At(c.band().scale_offset + 2 * d);
      for (int m = 0; m < m_count; ++m) {
        double coefficient = 0;
        for (int t = 0; t < 128; ++t) {
          coefficient += BasisValue(kind, 128, m, t) * Bf16ToFloat(c.dense[t * 8 + d]);
        }
        const auto q = std::to_integer<int8_t>(c.payload[c.band().data_offset + m * 8 + d]);
        ASSERT_LE(std::abs(coefficient - scale * q), scale / 2 * (1 + 1e-9));
        residual += (coefficient - scale * q) * (coefficient - scale * q);
        residual -= coefficient * coefficient;
      }
    }
    EXPECT_NEAR(error, std::sqrt(residual / energy), 1e-9);
  }
}

TEST(ReferenceCodec, ZeroStaysZeroWithoutError) {
  for (const auto& [coefficients, bits] : {std::pair(4, 8), {0, 4}, {0, 8}, {0, 16}}) {
    OneBand c(coefficients, bits, 128);
    EXPECT_EQ(c.RoundTrip([](int, int) { return 0.0f; }), 0);
    EXPECT_EQ(c.decoded, std::vector<double>(c.decoded.size(), 0.0));
  }
}

TEST(ReferenceCodec, TheLargestAndSmallestValuesStayFinite) {
  for (const auto& [coefficients, bits] : {std::pair(4, 8), {0, 4}, {0, 8}, {0, 16}}) {
    for (const float size : {1e30f, 1e-38f, 1e-40f}) {  // the last is subnormal
      OneBand c(coefficients, bits, 1024);
      const double error = c.RoundTrip([=](int t, int) { return t % 3 == 0 ? size : -size; });
      EXPECT_TRUE(std::isfinite(error));
      for (const double value : c.decoded) ASSERT_LE(std::abs(value), 4 * size);
    }
  }
}

TEST(ReferenceCodec, RandomProfilesGiveTheErrorThatDecodingShows) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (int i = 0; i < 10; ++i) {
    const CodecProfile profile = RandomProfile(rng);
    const ProfileLayout layout(profile);
    const PartLayout& part = layout.part(0, Part::kV);
    const KvDtype dtype = i % 2 == 0 ? KvDtype::kBf16 : KvDtype::kFp16;
    const std::vector<uint16_t> dense =
        RandomDense(rng, dtype, part.kv_heads, part.segment_tokens, part.head_dim);
    std::vector<std::byte> payload(part.payload_bytes, std::byte{0xff});
    const double error = EncodePart(part, dtype, dense, payload);
    const std::vector<double> decoded = DecodePart(part, payload);
    double difference = 0;
    double energy = 0;
    for (size_t k = 0; k < dense.size(); ++k) {
      const double x = KvToFloat(dense[k], dtype);
      difference += (x - decoded[k]) * (x - decoded[k]);
      energy += x * x;
    }
    EXPECT_NEAR(error, std::sqrt(difference / energy), 1e-12);
    EXPECT_LT(error, 1);

    // Every byte of the payload is written: padding is zero whatever stood there before.
    std::vector<std::byte> again(part.payload_bytes, std::byte{0x00});
    EncodePart(part, dtype, dense, again);
    EXPECT_EQ(again, payload);
  }
}

TEST(ReferenceCodec, AnyPayloadBytesCanBeDecoded) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  const ProfileLayout layout(RandomProfile(rng));
  const PartLayout& part = layout.part(0, Part::kK);
  std::vector<std::byte> payload(part.payload_bytes);
  for (std::byte& b : payload) b = static_cast<std::byte>(rng());
  EXPECT_EQ(DecodePart(part, payload).size(),
            static_cast<size_t>(part.kv_heads) * part.segment_tokens * part.head_dim);
}

// ---- attention ----

std::vector<double> RandomDoubles(std::mt19937_64& rng, size_t size) {
  std::normal_distribution<double> normal;
  std::vector<double> values(size);
  for (double& value : values) value = normal(rng);
  return values;
}

TEST(ReferenceAttend, OfOneTokenIsItsValue) {
  const std::vector<double> q = {1, 2}, k = {3, 4}, v = {-5, 6};
  std::vector<double> out(2), lse(1);
  Attend(q, k, v, 1, 1, 2, 0.5, out, lse);
  EXPECT_EQ(out, v);
  EXPECT_DOUBLE_EQ(lse[0], 5.5);
}

TEST(ReferenceAttend, OfEqualKeysIsTheMeanOfTheValues) {
  const std::vector<double> q = {1, 2}, k = {3, 4, 3, 4}, v = {1, 2, 3, 8};
  std::vector<double> out(2);
  Attend(q, k, v, 1, 2, 2, 1, out, {});
  EXPECT_EQ(out, (std::vector<double>{2, 5}));
}

TEST(ReferenceAttend, DoesNotOverflowForLargeScores) {
  const std::vector<double> q = {1e4, -1e4}, k = {1, 2}, v = {7, 8};
  std::vector<double> out(2), lse(2);
  Attend(q, k, v, 2, 2, 1, 1, out, lse);
  EXPECT_DOUBLE_EQ(out[0], 8);
  EXPECT_DOUBLE_EQ(out[1], 7);
  EXPECT_DOUBLE_EQ(lse[0], 2e4);
  EXPECT_DOUBLE_EQ(lse[1], -1e4);
}

TEST(ReferenceAttend, OfNothingIsZeroWithAnEmptySum) {
  std::vector<double> out = {9, 9}, lse = {9};
  const std::vector<double> q = {1, 2};
  Attend(q, {}, {}, 1, 0, 2, 1, out, lse);
  EXPECT_EQ(out, (std::vector<double>{0, 0}));
  EXPECT_EQ(lse[0], -std::numeric_limits<double>::infinity());
}

TEST(ReferenceAttend, PartsMergeByTheirLogSums) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  const int dim = 8, tokens = 33, split = 11;
  const std::vector<double> q = RandomDoubles(rng, dim);
  const std::vector<double> k = RandomDoubles(rng, tokens * dim);
  const std::vector<double> v = RandomDoubles(rng, tokens * dim);
  std::vector<double> whole(dim), first(dim), second(dim), lse(1), lse1(1), lse2(1);
  Attend(q, k, v, 1, tokens, dim, 0.3, whole, lse);
  Attend(q, std::span(k).first(split * dim), std::span(v).first(split * dim), 1, split, dim, 0.3,
         first, lse1);
  Attend(q, std::span(k).subspan(split * dim), std::span(v).subspan(split * dim), 1, tokens - split,
         dim, 0.3, second, lse2);
  EXPECT_NEAR(lse[0], std::log(std::exp(lse1[0]) + std::exp(lse2[0])), 1e-12);
  for (int d = 0; d < dim; ++d) {
    EXPECT_NEAR(whole[d],
                std::exp(lse1[0] - lse[0]) * first[d] + std::exp(lse2[0] - lse[0]) * second[d],
                1e-12);
  }
}

// The identity that the whole project stands on: scores and outputs from the coefficients are those
// of the decoded keys and values.
TEST(ReferenceAttend, OnCoefficientsEqualsAttentionOnDecodedKeysAndValues) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  const int s = 128, dim = 16, spectral = 12, m_count = 6;
  const ProfileLayout layout(UniformProfile({1, 1, dim}, 0.75, 0.75, m_count, 16));
  CodecProfile profile = layout.profile();
  profile.segment_tokens = s;
  const ProfileLayout short_layout(profile);
  std::vector<double> decoded[2], coefficients[2];
  for (Part part_kind : kParts) {
    const PartLayout& part = short_layout.part(0, part_kind);
    const int p = static_cast<int>(part_kind);
    std::vector<std::byte> payload(part.payload_bytes);
    EncodePart(part, KvDtype::kBf16, RandomDense(rng, KvDtype::kBf16, 1, s, dim), payload);
    decoded[p] = DecodePart(part, payload);
    for (int m = 0; m < m_count; ++m) {  // C = B^T X^[:, F]
      for (int d = 0; d < spectral; ++d) {
        double c = 0;
        for (int t = 0; t < s; ++t) {
          c += BasisValue(BasisKind::kDct2, s, m, t) * decoded[p][t * dim + d];
        }
        coefficients[p].push_back(c);
      }
    }
  }
  const std::vector<double> q = RandomDoubles(rng, dim);
  std::vector<double> expected(dim), lse(1);
  Attend(q, decoded[0], decoded[1], 1, s, dim, 0.1, expected, lse);

  std::vector<double> y(m_count), z(m_count), out(dim);
  for (int m = 0; m < m_count; ++m) {
    for (int d = 0; d < spectral; ++d) y[m] += coefficients[0][m * spectral + d] * q[d];
  }
  for (int t = 0; t < s; ++t) {
    double score = 0;
    for (int m = 0; m < m_count; ++m) score += BasisValue(BasisKind::kDct2, s, m, t) * y[m];
    for (int d = spectral; d < dim; ++d) score += decoded[0][t * dim + d] * q[d];
    const double weight = std::exp(0.1 * score - lse[0]);
    for (int m = 0; m < m_count; ++m) z[m] += BasisValue(BasisKind::kDct2, s, m, t) * weight;
    for (int d = spectral; d < dim; ++d) out[d] += weight * decoded[1][t * dim + d];
  }
  for (int m = 0; m < m_count; ++m) {
    for (int d = 0; d < spectral; ++d) out[d] += coefficients[1][m * spectral + d] * z[m];
  }
  for (int d = 0; d < dim; ++d) EXPECT_NEAR(out[d], expected[d], 1e-10);
}

}  // namespace
}  // namespace fourierkv::reference
