// Whole payloads against the float64 reference, and what is refused.

#include "compute/sequence/sequence_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "compute/codec/sequence_payload_check.h"
#include "compute/codec/sequence_reference.h"
#include "tests/compute/sequence/sequence_test_util.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;

constexpr KvGeometry kGeometry{.layers = 1, .kv_heads = 3, .head_dim = 24};

struct Case {
  const char* name;
  KvDtype dtype;
  int bits;
  bool rescale;
};

class SequenceCodec : public ::testing::TestWithParam<Case> {
 protected:
  SequenceCodec() : seed_(FreshSeed()), random_(seed_) {
    const SequenceScope scope{.sink_tokens = 3,
                              .recent_tokens = 17,
                              .frequencies = 24,
                              .peak_rescale = GetParam().rescale};
    layout_ = std::make_unique<SequenceLayout>(
        RandomSequenceProfile(random_, kGeometry, scope, GetParam().bits));
  }

  void MakeInput(int64_t tokens, int64_t capacity) {
    tokens_ = tokens;
    capacity_ = capacity;
    dense_ =
        RandomSequence(random_, GetParam().dtype, kGeometry.kv_heads, tokens, kGeometry.head_dim);
    basis_ = MakeSequenceBasis(layout_->scope(), tokens, capacity);
  }

  const SequencePart& part() const { return layout_->part(0, Part::kK); }

  absl::StatusOr<float> Encode(std::vector<std::byte>* payload) {
    payload->assign(part().PayloadBytes(tokens_), std::byte{0x55});
    return EncodeSequence(part(), tokens_, capacity_, basis_, GetParam().dtype, dense_.data(),
                          *payload, pool_);
  }

  const uint64_t seed_;
  std::mt19937_64 random_;
  ThreadPool pool_{2};
  std::unique_ptr<SequenceLayout> layout_;
  std::shared_ptr<const SequenceBasis> basis_;
  int64_t tokens_ = 0, capacity_ = 0;
  std::vector<uint16_t> dense_;
};

TEST_P(SequenceCodec, WritesPayloadsThatMeanWhatTheReferencesMean) {
  SCOPED_TRACE(seed_);
  for (int64_t tokens : {1, 68, 69, 321, 900}) {
    SCOPED_TRACE(tokens);
    MakeInput(tokens, tokens + tokens / 7);
    std::vector<std::byte> payload, reference(part().PayloadBytes(tokens));
    const auto error = Encode(&payload);
    ASSERT_TRUE(error.ok()) << error.status();
    const double expected_error =
        reference::EncodeSequence(part(), tokens_, capacity_, GetParam().dtype, dense_, reference);
    EXPECT_NEAR(*error, expected_error, 1e-4 * expected_error + 1e-7);
    for (const auto& each : {payload, reference}) {
      const absl::Status s =
          CheckSequencePayload(part(), tokens_, capacity_, GetParam().dtype, each);
      EXPECT_TRUE(s.ok()) << s;
    }
    const auto expected = reference::DecodeSequence(part(), GetParam().dtype, reference);
    // Values near a tie are rounded to neighbours in bf16, 2^-8 apart; few are.
    EXPECT_LT(
        RelativeDistance(reference::DecodeSequence(part(), GetParam().dtype, payload), expected),
        GetParam().bits == 16 ? 4e-4 : 3e-6);

    std::vector<uint16_t> decoded(dense_.size());
    DecodeSequence(part(), tokens_, basis_, GetParam().dtype, payload, decoded.data(), pool_);
    std::vector<float> values;
    for (uint16_t bits : decoded) values.push_back(KvToFloat(bits, GetParam().dtype));
    EXPECT_LT(RelativeDistance(values, expected), 0x1p-8);
  }
}

TEST_P(SequenceCodec, RefusesValuesThatCannotBeEncoded) {
  MakeInput(200, 220);
  std::vector<std::byte> payload;
  dense_[(200 + 57) * kGeometry.head_dim + 5] = FloatToKv(NAN, GetParam().dtype);
  const auto status = Encode(&payload).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("head 1, token 57"));
}

TEST_P(SequenceCodec, ChecksPayloadsFromOutside) {
  SCOPED_TRACE(seed_);
  MakeInput(150, 200);
  std::vector<std::byte> good;
  ASSERT_TRUE(Encode(&good).ok());
  const auto check = [&](const std::vector<std::byte>& payload, int64_t tokens = 150,
                         int64_t capacity = 200) {
    const absl::Status s =
        CheckSequencePayload(part(), tokens, capacity, GetParam().dtype, payload);
    EXPECT_EQ(s.code(), absl::StatusCode::kInvalidArgument);
    return std::string(s.message());
  };
  const auto with = [&](int64_t offset, auto value) {
    std::vector<std::byte> bad = good;
    std::memcpy(bad.data() + offset, &value, sizeof value);
    return check(bad);
  };
  EXPECT_THAT(check({good.begin(), good.end() - 1}), HasSubstr("150 tokens take"));
  EXPECT_THAT(check(good, 150, 201), HasSubstr("capacity is 200, not 201"));
  EXPECT_THAT(check(good, 150, 149), HasSubstr("1 to its capacity"));
  EXPECT_THAT(check(good, 0), HasSubstr("a sequence of 0 tokens"));
  EXPECT_THAT(check(good, 150, int64_t{1} << 40), HasSubstr("capacity is"));
  EXPECT_THAT(with(0, uint32_t{151}), HasSubstr("tokens is 151, not 150"));
  EXPECT_THAT(with(8, uint32_t{1}), HasSubstr("middle tokens is 1"));
  EXPECT_THAT(with(12, uint32_t{1}), HasSubstr("reserved word is 1"));
  EXPECT_THAT(with(kSequencePrefixBytes, uint16_t{0x7fff}), HasSubstr("exact value 0"));

  // Head 0 of K has spectral channels only, head 2 both kinds.
  const SequencePart::HeadOffsets at = part().Place(0, part().HeadsOffset(150), 130);
  if (GetParam().rescale) {
    EXPECT_THAT(with(at.gain, -1.0f), HasSubstr("head 0: gain 0 is -1"));
    EXPECT_THAT(with(at.gain, NAN), HasSubstr("gain 0"));
    EXPECT_THAT(with(at.gain + 24 * 4, INFINITY), HasSubstr("shift 0 is inf"));
  }
  if (GetParam().bits == 16) {
    EXPECT_THAT(with(at.coefficients, uint16_t{0x7fc0}), HasSubstr("head 0: coefficient 0"));
  } else {
    EXPECT_THAT(with(at.coefficients + 4, 0x1p65f), HasSubstr("head 0: coefficient 1"));
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, SequenceCodec,
                         ::testing::Values(Case{"Bf16", KvDtype::kBf16, 32, false},
                                           Case{"Fp16", KvDtype::kFp16, 32, true},
                                           Case{"NarrowCoefficients", KvDtype::kBf16, 16, false},
                                           Case{"RescaledNarrow", KvDtype::kBf16, 16, true}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace fourierkv
