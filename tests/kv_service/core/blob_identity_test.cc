#include "kv_service/core/blob_identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "compute/base/bfloat16.h"
#include "compute/codec/payload_check.h"
#include "core_fixtures.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;

class BlobIdentityTest : public testing::Test {
 protected:
  std::mt19937 rng_{std::random_device{}()};
  std::shared_ptr<const NamespaceContext> context_ = SmallContext();
  std::vector<StoredSegment> chain_ = MakeChain(context_, RandomTokens(rng_, 2 * kS + 3));
};

TEST_F(BlobIdentityTest, HeadersSayWhatABlobIs) {
  const BlobHeader compact = ExpectedHeader(chain_[1], SegmentForm::kCompact, 1, Part::kV, 0.5f);
  EXPECT_EQ(compact.block_key, chain_[1].key);
  EXPECT_EQ(compact.first_token, kS);
  EXPECT_EQ(compact.payload_bytes, context_->layout->part(1, Part::kV).payload_bytes);
  EXPECT_EQ(std::memcmp(compact.profile_prefix.data(), context_->layout->id().bytes.data(), 16), 0);
  EXPECT_EQ(compact.relative_error, 0.5f);
  const BlobHeader tail = ExpectedHeader(chain_[2], SegmentForm::kExact, 0, Part::kK, 0);
  EXPECT_EQ(tail.tokens, 3);
  EXPECT_EQ(tail.payload_bytes, kSmall.PartBytes(3));
  EXPECT_EQ(tail.profile_prefix, (std::array<uint8_t, 16>{}));
}

TEST_F(BlobIdentityTest, AHeaderOfAnotherBlobIsRefusedButErrorsMayDiffer) {
  const BlobHeader expected = ExpectedHeader(chain_[1], SegmentForm::kCompact, 0, Part::kK, 0);
  EXPECT_TRUE(
      CheckHeader(ExpectedHeader(chain_[1], SegmentForm::kCompact, 0, Part::kK, 0.1f), expected)
          .ok());
  EXPECT_THAT(
      CheckHeader(ExpectedHeader(chain_[0], SegmentForm::kCompact, 0, Part::kK, 0), expected)
          .ToString(),
      HasSubstr("block_key"));
  EXPECT_THAT(CheckHeader(ExpectedHeader(chain_[1], SegmentForm::kDense, 0, Part::kK, 0), expected)
                  .ToString(),
              HasSubstr("form is dense; it must be compact"));
}

TEST_F(BlobIdentityTest, FindsTheFirstBadValueOfEitherDtype) {
  for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp16}) {
    for (int round = 0; round < 100; ++round) {
      std::vector<uint16_t> values(1 + rng_() % 5000);
      for (uint16_t& v : values) v = FloatToKv(static_cast<float>(rng_()) / 1e9f - 2, dtype);
      EXPECT_EQ(FirstBadValue(values, dtype), std::nullopt);
      const size_t at = rng_() % values.size();
      const float bads[] = {std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()};
      values[at] = FloatToKv(bads[round % 3], dtype);
      EXPECT_EQ(FirstBadValue(values, dtype), at);
      values.back() = values[at];
      EXPECT_EQ(FirstBadValue(values, dtype), at);
    }
  }
}

TEST_F(BlobIdentityTest, TheLargestValuesAreTaken) {
  const uint16_t fp16[] = {0x7bff, 0xfbff};
  EXPECT_EQ(FirstBadValue(fp16, KvDtype::kFp16), std::nullopt);
  const uint16_t bf16[] = {FloatToBf16Down(1e30f), FloatToBf16Up(-1e30f)};
  EXPECT_EQ(FirstBadValue(bf16, KvDtype::kBf16), std::nullopt);
  const uint16_t beyond[] = {0, FloatToBf16(1.1e30f)};
  EXPECT_EQ(FirstBadValue(beyond, KvDtype::kBf16), 1);
}

TEST_F(BlobIdentityTest, EncodersNeverMakeWhatIsRefused) {
  ReferenceBackend backend;
  for (const int bits : {4, 8, 16}) {
    CodecProfile profile = UniformProfile(kSmall, 0.5, 0.5, 4, bits);
    profile.segment_tokens = kS;
    const ProfileLayout layout(profile);
    const PartLayout& part = layout.part(0, Part::kK);
    std::vector<uint16_t> dense(kSmall.PartBytes(kS) / 2);
    for (uint16_t& v : dense) {
      v = rng_() % 2 == 0 ? FloatToBf16Down(kMaxMagnitude) : FloatToBf16Up(-kMaxMagnitude);
    }
    std::vector<std::byte> payload(part.payload_bytes);
    EncodeJob job{.layout = &part,
                  .dense = dense.data(),
                  .head_stride = kS * kSmall.head_dim,
                  .payload = payload.data()};
    ASSERT_TRUE(backend.Encode(KvDtype::kBf16, std::span(&job, 1)).ok());
    EXPECT_TRUE(CheckPayload(part, payload).ok());
  }
}

}  // namespace
}  // namespace fourierkv
