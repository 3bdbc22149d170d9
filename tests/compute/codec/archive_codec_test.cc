#include "compute/codec/archive_codec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "compute/base/bfloat16.h"
#include "compute/codec/reference_archive.h"
#include "tests/compute/codec/random_archive.h"

namespace fourierkv {
namespace {

std::unique_ptr<const ArchiveCodec> MakeCodec(const CodecProfile& profile) {
  EXPECT_TRUE(profile.Validate().ok()) << profile.Validate();
  auto codec = ArchiveCodec::Create(profile);
  EXPECT_TRUE(codec.ok()) << codec.status();
  return *std::move(codec);
}

std::vector<uint16_t> DenseFor(std::mt19937_64& rng, const CodecProfile& profile, KvDtype dtype) {
  const KvGeometry& g = profile.geometry;
  return RandomDense(rng, dtype, g.kv_heads, profile.segment_tokens, g.head_dim);
}

TEST(ArchiveCodec, AgreesWithTheReference) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 12; ++round) {
    CodecProfile profile = RandomArchivingProfile(rng);
    const auto codec = MakeCodec(profile);
    const KvDtype dtype = round % 2 == 0 ? KvDtype::kBf16 : KvDtype::kFp16;
    const int layer = RandomInt(rng, 0, profile.geometry.layers - 1);
    const int64_t first = int64_t{profile.segment_tokens} * RandomInt(rng, 0, 500);
    for (Part part : kParts) {
      SCOPED_TRACE(PartName(part));
      const std::vector<uint16_t> dense = DenseFor(rng, profile, dtype);
      const auto archived = codec->Encode(layer, part, dtype, first, dense);
      ASSERT_TRUE(archived.ok()) << archived.status();

      // Integers may differ only where the quotient is at the border of two.
      const auto symbols = codec->DecodeSymbols(layer, part, archived->payload);
      ASSERT_TRUE(symbols.ok()) << symbols.status();
      const std::vector<double> y =
          reference::ArchiveForward(profile, layer, part, dtype, first, dense);
      for (size_t i = 0; i < y.size(); ++i) {
        const int rounding = profile.archive->rounding;
        const int q = (*symbols)[i];
        if (q == reference::ArchiveRound(y[i], rounding)) continue;
        const double slack = 1e-4 * (1 + std::fabs(y[i]));
        EXPECT_TRUE(q == reference::ArchiveRound(y[i] + slack, rounding) ||
                    q == reference::ArchiveRound(y[i] - slack, rounding))
            << "y " << y[i] << " q " << q;
      }

      std::vector<uint16_t> decoded(dense.size());
      ASSERT_TRUE(
          codec->Decode(layer, part, dtype, first, archived->payload, std::span(decoded)).ok());
      const std::vector<double> expected =
          reference::ArchiveInverse(profile, layer, part, first, *symbols);
      double error = 0, energy = 0;
      const double unit = dtype == KvDtype::kBf16 ? 0x1p-8 : 0x1p-11;  // of rounding
      for (size_t i = 0; i < dense.size(); ++i) {
        EXPECT_NEAR(KvToFloat(decoded[i], dtype), expected[i],
                    unit * std::fabs(expected[i]) + 1e-3);
        const double value = KvToFloat(dense[i], dtype);
        error += (value - expected[i]) * (value - expected[i]);
        energy += value * value;
      }
      EXPECT_NEAR(archived->relative_error, std::sqrt(error / energy), 1e-3);
    }
  }
}

class ArchiveCodecFaults : public testing::Test {
 protected:
  absl::Status Encode(const std::vector<uint16_t>& dense) const {
    return codec_->Encode(0, Part::kV, KvDtype::kBf16, 0, dense).status();
  }

  std::mt19937_64 rng_{3};
  CodecProfile profile_ = RandomArchivingProfile(rng_);
  std::unique_ptr<const ArchiveCodec> codec_ = MakeCodec(profile_);
  std::vector<uint16_t> dense_ = DenseFor(rng_, profile_, KvDtype::kBf16);
};

TEST_F(ArchiveCodecFaults, ProfilesWithoutArchiveSectionArchiveNothing) {
  profile_.archive.reset();
  EXPECT_EQ(ArchiveCodec::Create(profile_).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(ArchiveCodecFaults, WrongSizesAreRefused) {
  dense_.pop_back();
  EXPECT_EQ(Encode(dense_).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(codec_->Decode(0, Part::kV, KvDtype::kBf16, 0, {}, std::span(dense_)).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ArchiveCodecFaults, ValuesThatAreNotFiniteAreRefused) {
  for (float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                    std::numeric_limits<float>::quiet_NaN(), 2e30f}) {
    std::vector<uint16_t> dense = dense_;
    dense[RandomInt(rng_, 0, static_cast<int>(dense.size()) - 1)] = FloatToBf16(bad);
    EXPECT_EQ(Encode(dense).code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST_F(ArchiveCodecFaults, ValuesTooFarFromTheProfileAreOutOfRange) {
  dense_[17] = FloatToBf16(1e9f);
  EXPECT_EQ(Encode(dense_).code(), absl::StatusCode::kOutOfRange);
}

TEST_F(ArchiveCodecFaults, PartsThatWouldGrowAreOutOfRange) {
  for (ArchiveHead& head : profile_.archive->heads) {
    head.step.assign(head.step.size(), FloatToBf16(0x1p-10f));
  }
  codec_ = MakeCodec(profile_);
  EXPECT_EQ(Encode(dense_).code(), absl::StatusCode::kOutOfRange);
}

TEST_F(ArchiveCodecFaults, ZerosHaveNoErrorAndFewBytes) {
  for (ArchiveHead& head : profile_.archive->heads) head.mean.assign(head.mean.size(), 0);
  codec_ = MakeCodec(profile_);
  const auto archived =
      codec_->Encode(0, Part::kV, KvDtype::kBf16, 0, std::vector<uint16_t>(dense_.size()));
  ASSERT_TRUE(archived.ok()) << archived.status();
  EXPECT_EQ(archived->relative_error, 0);
  EXPECT_GE(archived->payload.size(), 1);
}

TEST_F(ArchiveCodecFaults, DamagedPayloadsDecodeToFiniteValuesOrNotAtAll) {
  for (KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp16}) {
    for (int round = 0; round < 200; ++round) {
      std::vector<std::byte> payload(RandomInt(rng_, 0, 300));
      for (std::byte& b : payload) b = static_cast<std::byte>(rng_());
      std::fill(dense_.begin(), dense_.end(), uint16_t{0});
      const absl::Status status =
          codec_->Decode(0, Part::kK, dtype, 512, payload, std::span(dense_));
      if (!status.ok()) {
        EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
      }
      for (uint16_t bits : dense_) ASSERT_TRUE(std::isfinite(KvToFloat(bits, dtype)));
    }
  }
}

}  // namespace
}  // namespace fourierkv
