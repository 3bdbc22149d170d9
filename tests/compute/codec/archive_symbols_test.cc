#include "compute/codec/archive_symbols.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "compute/codec/range_coder.h"
#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv {
namespace {

TEST(RangeCoder, ReadsBackWhatItWroteWhateverTheProbabilities) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 200; ++round) {
    std::vector<AdaptiveBit> writer, reader;
    for (int i = 0; i < 4; ++i) {
      const int low = RandomInt(rng, AdaptiveBit::kLow, AdaptiveBit::kHigh);
      writer.emplace_back(static_cast<uint16_t>(low));
    }
    reader = writer;
    const double share = std::uniform_real_distribution<double>(0, 1)(rng);
    std::vector<int> bits;
    std::vector<std::byte> code(3);  // the encoder appends
    RangeEncoder encoder(&code);
    for (int i = RandomInt(rng, 0, 500); i > 0; --i) {
      const bool bit = std::bernoulli_distribution(share)(rng);
      bits.push_back(bit ? 1 : 0);
      if (i % 5 == 0) {
        encoder.PutRaw(bit ? 0x5a5a : 0x0ff0, 16);
      } else {
        encoder.Put(bit, writer[i % 4]);
      }
    }
    encoder.Finish();
    RangeDecoder decoder(std::span<const std::byte>(code).subspan(3));
    int i = static_cast<int>(bits.size());
    for (int expected : bits) {
      if (i % 5 == 0) {
        ASSERT_EQ(decoder.GetRaw(16), expected == 1 ? 0x5a5a : 0x0ff0);
      } else {
        ASSERT_EQ(decoder.Get(reader[i % 4]), expected == 1);
      }
      --i;
    }
    EXPECT_TRUE(decoder.AtEnd());
  }
}

TEST(RangeCoder, CarriesThroughBytesOfAllOnes) {
  // Certain bits at the upper end of the interval fill the output with 0xff; then one at its end
  // makes the carry run back.
  std::vector<std::byte> code;
  RangeEncoder encoder(&code);
  for (int i = 0; i < 40; ++i) encoder.PutRaw(0xffff, 16);
  AdaptiveBit unlikely(AdaptiveBit::kHigh);
  for (int i = 0; i < 20; ++i) encoder.Put(false, unlikely);
  encoder.Finish();
  RangeDecoder decoder(code);
  for (int i = 0; i < 40; ++i) ASSERT_EQ(decoder.GetRaw(16), 0xffff);
  AdaptiveBit same(AdaptiveBit::kHigh);
  for (int i = 0; i < 20; ++i) ASSERT_FALSE(decoder.Get(same));
}

TEST(RangeCoder, ComesWithinAThousandthOfTheEntropy) {
  constexpr int kBits = 200000;
  std::mt19937_64 rng(1);
  std::bernoulli_distribution one(0.03);
  std::vector<std::byte> code;
  RangeEncoder encoder(&code);
  double entropy = 0;
  AdaptiveBit with(2000);
  for (int i = 0; i < kBits; ++i) {
    const bool bit = one(rng);
    const double p = with.probability() / 65536.0;
    entropy -= std::log2(bit ? p : 1 - p);
    encoder.Put(bit, with);
  }
  encoder.Finish();
  EXPECT_NEAR(8.0 * static_cast<double>(code.size()), entropy, entropy / 1000);
}

struct Symbols {
  ArchiveSymbolShape shape() const {
    return {.channels = channels, .blocks = blocks, .classes = classes};
  }

  int channels;
  int blocks;
  std::vector<uint8_t> classes;
  std::vector<uint16_t> probabilities;
  std::vector<int16_t> values;
};

// Mostly zeros, in places large.
Symbols RandomSymbols(std::mt19937_64& rng) {
  Symbols s{RandomInt(rng, 1, 40), RandomInt(rng, 1, 5), {}, {}, {}};
  for (int i = 0; i < s.channels * kArchiveOctaves; ++i) {
    s.classes.push_back(static_cast<uint8_t>(RandomInt(rng, 0, kArchiveClasses - 1)));
  }
  for (int i = 0; i < kArchiveContexts; ++i) {
    s.probabilities.push_back(
        static_cast<uint16_t>(RandomInt(rng, AdaptiveBit::kLow, AdaptiveBit::kHigh)));
  }
  const int density = RandomInt(rng, 0, 100);
  for (size_t i = 0; i < s.shape().size(); ++i) {
    const bool zero = RandomInt(rng, 0, 99) >= density;
    const int largest = RandomInt(rng, 0, 20) == 0 ? kArchiveLargest : 20;
    s.values.push_back(static_cast<int16_t>(zero ? 0 : RandomInt(rng, -largest, largest)));
  }
  return s;
}

std::vector<std::byte> Encode(const Symbols& s) {
  std::vector<std::byte> code;
  EncodeArchiveSymbols(s.shape(), s.probabilities, s.values, &code);
  return code;
}

TEST(ArchiveSymbols, ComeBackExactly) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 50; ++round) {
    const Symbols s = RandomSymbols(rng);
    std::vector<int16_t> decoded(s.values.size(), 77);
    ASSERT_TRUE(
        DecodeArchiveSymbols(s.shape(), s.probabilities, Encode(s), std::span(decoded)).ok());
    EXPECT_EQ(decoded, s.values);
  }
}

TEST(ArchiveSymbols, CodeTheLargestMagnitudesAndNothingAtAll) {
  std::mt19937_64 rng(5);
  for (int16_t value : {int16_t{kArchiveLargest}, int16_t{-kArchiveLargest}, int16_t{0}}) {
    Symbols s = RandomSymbols(rng);
    std::fill(s.values.begin(), s.values.end(), value);
    std::vector<int16_t> decoded(s.values.size(), 77);
    ASSERT_TRUE(
        DecodeArchiveSymbols(s.shape(), s.probabilities, Encode(s), std::span(decoded)).ok());
    EXPECT_EQ(decoded, s.values);
  }
}

TEST(ArchiveSymbols, TrainedProbabilitiesMakeTheCodeSmaller) {
  std::mt19937_64 rng(7);
  Symbols s = RandomSymbols(rng);
  const size_t untrained = Encode(s).size();
  std::vector<ArchiveBitCounts> counts(kArchiveContexts);
  CountArchiveSymbols(s.shape(), s.values, std::span(counts));
  s.probabilities = ProbabilitiesFromCounts(counts);
  EXPECT_LT(Encode(s).size(), untrained);
}

// Whatever the bytes, decoding ends and stays within bounds.
void ExpectSafe(const Symbols& s, std::span<const std::byte> code) {
  std::vector<int16_t> decoded(s.values.size());
  const absl::Status status =
      DecodeArchiveSymbols(s.shape(), s.probabilities, code, std::span(decoded));
  if (!status.ok()) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  }
  for (int16_t value : decoded) ASSERT_LE(std::abs(value), kArchiveLargest);
}

TEST(ArchiveSymbols, DamageIsReportedOrHarmless) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 3; ++round) {
    const Symbols s = RandomSymbols(rng);
    std::vector<std::byte> code = Encode(s);
    const size_t stride = 1 + code.size() / 300;
    for (size_t size = 0; size < code.size(); size += stride) {
      ExpectSafe(s, std::span(code).first(size));
    }
    for (size_t i = 0; i < code.size(); i += stride) {
      const std::byte flip{static_cast<uint8_t>(1 << RandomInt(rng, 0, 7))};
      code[i] ^= flip;
      ExpectSafe(s, code);
      code[i] ^= flip;
    }
    for (int size : {0, 1, 7, 100, 5000}) {
      std::vector<std::byte> garbage(size);
      for (std::byte& b : garbage) b = static_cast<std::byte>(rng());
      ExpectSafe(s, garbage);
      std::fill(garbage.begin(), garbage.end(), std::byte{0xff});
      ExpectSafe(s, garbage);
      std::fill(garbage.begin(), garbage.end(), std::byte{0});
      ExpectSafe(s, garbage);
    }
  }
}

TEST(ArchiveSymbols, BytesBehindTheCodeAreDamage) {
  std::mt19937_64 rng(11);
  const Symbols s = RandomSymbols(rng);
  std::vector<std::byte> code = Encode(s);
  code.insert(code.end(), 16, std::byte{1});
  std::vector<int16_t> decoded(s.values.size());
  EXPECT_EQ(DecodeArchiveSymbols(s.shape(), s.probabilities, code, std::span(decoded)).code(),
            absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace fourierkv
