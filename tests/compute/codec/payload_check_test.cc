#include "compute/codec/payload_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "compute/codec/reference_codec.h"
#include "tests/compute/codec/golden.h"
#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

class PayloadCheck : public testing::Test {
 protected:
  PayloadCheck() : payload_(part_.payload_bytes) {
    reference::EncodePart(part_, KvDtype::kBf16, GoldenDense(), payload_);
  }

  void StoreBf16(int64_t at, uint16_t bits) {
    payload_[at] = static_cast<std::byte>(bits);
    payload_[at + 1] = static_cast<std::byte>(bits >> 8);
  }

  void ExpectRefused(const char* message) {
    const absl::Status status = CheckPayload(part_, payload_);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }

  const ProfileLayout layout_{GoldenProfile()};
  const PartLayout& part_ = layout_.part(0, Part::kK);
  std::vector<std::byte> payload_;
};

constexpr uint16_t kNan = 0x7fc0, kInfinity = 0x7f80, kMinusOne = 0xbf80, kHuge = 0x7e80;

TEST_F(PayloadCheck, RefusesOtherSizes) {
  payload_.pop_back();
  ExpectRefused("payload has 1295 bytes; the profile's layout has 1296");
  payload_.resize(1297);
  ExpectRefused("payload has 1297 bytes");
}

TEST_F(PayloadCheck, RefusesScalesThatNoEncoderWrites) {
  for (const uint16_t scale : {kNan, kInfinity, kMinusOne, kHuge}) {
    StoreBf16(part_.heads[0].bands[0].scale_offset + 2 * 5, scale);
    ExpectRefused("head 0, band 0, channel 10: the scale is");
  }
}

TEST_F(PayloadCheck, RefusesOffsetsThatAreNotFinite) {
  for (const uint16_t offset : {kNan, kInfinity, kHuge}) {
    StoreBf16(part_.heads[0].bands[2].zero_offset + 2, offset);
    ExpectRefused("head 0, band 2, channel 13: the offset is");
  }
}

TEST_F(PayloadCheck, RefusesValuesThatAreNotFinite) {
  for (const uint16_t value : {kNan, kInfinity, kHuge}) {
    StoreBf16(part_.heads[0].bands[3].data_offset + 2 * 255, value);
    ExpectRefused("head 0, band 3, channel 15: a value is");
  }
}

TEST(PayloadCheckBf16, RefusesCoefficientsThatAreNotFinite) {
  CodecProfile profile = GoldenProfile();
  profile.heads[0].bands[0].bits = 16;
  const ProfileLayout layout(profile);
  const PartLayout& part = layout.part(0, Part::kK);
  std::vector<std::byte> payload(part.payload_bytes);
  ASSERT_TRUE(CheckPayload(part, payload).ok());
  const int64_t at = part.heads[0].bands[0].data_offset + 2 * (6 + 4);  // m = 1 of channel 9
  payload[at + 1] = std::byte{0x7f};
  payload[at] = std::byte{0x80};
  const absl::Status status = CheckPayload(part, payload);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("head 0, band 0, channel 9: a value is"));
}

TEST_F(PayloadCheck, RefusesTheCoefficientThatHasNoNegative) {
  payload_[part_.heads[0].bands[0].data_offset + 6 + 1] = std::byte{0x80};
  ExpectRefused("head 0, band 0, channel 1: a coefficient is -128");
}

TEST_F(PayloadCheck, RefusesPaddingThatIsNotZero) {
  payload_[31] = std::byte{1};
  ExpectRefused("head 0, band 0: padding is not zero");
}

TEST_F(PayloadCheck, RefusesPaddingBeforeResidentsThatIsNotZero) {
  payload_[part_.heads[0].bands[1].data_offset - 1] = std::byte{1};
  ExpectRefused("head 0, band 1: padding is not zero");
}

TEST(PayloadCheckProperty, AcceptsWhatEncodersWriteAndOnlyWhatDecodesToFiniteValues) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (int i = 0; i < 10; ++i) {
    const ProfileLayout layout(RandomProfile(rng));
    const PartLayout& part = layout.part(0, Part::kK);
    std::vector<uint16_t> dense =
        RandomDense(rng, KvDtype::kBf16, part.kv_heads, part.segment_tokens, part.head_dim);
    dense[rng() % dense.size()] = FloatToBf16Down(1e30f);
    dense[rng() % dense.size()] = FloatToBf16Up(-1e30f);
    std::vector<std::byte> payload(part.payload_bytes);
    reference::EncodePart(part, KvDtype::kBf16, dense, payload);
    const absl::Status fresh = CheckPayload(part, payload);
    ASSERT_TRUE(fresh.ok()) << fresh;

    for (int damage = 0; damage < 3; ++damage) {
      payload[rng() % payload.size()] = static_cast<std::byte>(rng());
      if (!CheckPayload(part, payload).ok()) continue;
      for (const double value : reference::DecodePart(part, payload)) {
        ASSERT_TRUE(std::isfinite(static_cast<float>(value)));
      }
    }
  }
}

}  // namespace
}  // namespace fourierkv
