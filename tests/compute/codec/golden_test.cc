// The format as it stands in files: what was written by an earlier version must be read by every
// later one, and written again byte for byte.

#include "tests/compute/codec/golden.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "compute/codec/reference_codec.h"

namespace fourierkv {
namespace {

std::string ReadGolden(const char* name) {
  std::ifstream file(std::string(FOURIERKV_TEST_DATA) + "/golden/" + name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

class Golden : public testing::Test {
 protected:
  const ProfileLayout layout_{GoldenProfile()};
  const PartLayout& part_ = layout_.part(0, Part::kK);
  const std::string payload_ = ReadGolden(kGoldenPayloadFile);
  const std::string blob_ = ReadGolden(kGoldenBlobFile);
};

TEST_F(Golden, ProfileIsReadAndWrittenAgain) {
  const std::string text = ReadGolden(kGoldenProfileFile);
  EXPECT_EQ(CodecProfile::FromJson(text).value(), GoldenProfile());
  EXPECT_EQ(GoldenProfile().ToPrettyJson(), text);
}

TEST_F(Golden, ProfileIdIsTheDocumentedOne) {
  EXPECT_EQ(layout_.id().ToHex(),
            "e84e561b047e245ba0850a854bcba98a7f35718e32738e4f363b56e1b6846fd6");
}

TEST_F(Golden, PayloadIsEncodedByteForByte) {
  std::vector<std::byte> payload(part_.payload_bytes);
  reference::EncodePart(part_, KvDtype::kBf16, GoldenDense(), payload);
  ASSERT_EQ(payload.size(), payload_.size());
  for (size_t i = 0; i < payload.size(); ++i) {
    ASSERT_EQ(payload[i], AsBytes(payload_)[i]) << "byte " << i;
  }
}

TEST_F(Golden, BlobOpensToTheHeaderAndPayload) {
  const absl::StatusOr<BlobHeader> header = OpenBlob(AsBytes(blob_));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(*header, GoldenHeader(payload_.size(), header->relative_error));
  EXPECT_EQ(blob_.substr(kBlobHeaderBytes), payload_);
}

TEST_F(Golden, BlobIsSealedByteForByte) {
  const BlobHeader header = OpenBlob(AsBytes(blob_)).value();
  std::vector<std::byte> blob(AsBytes(blob_).begin(), AsBytes(blob_).end());
  std::fill_n(blob.begin(), kBlobHeaderBytes, std::byte{0});
  SealBlob(header, blob);
  EXPECT_TRUE(std::equal(blob.begin(), blob.end(), AsBytes(blob_).begin()));
}

TEST_F(Golden, DecodesToTheInputWithinTheErrorThatTheHeaderStates) {
  const std::vector<double> decoded = reference::DecodePart(part_, AsBytes(payload_));
  double error = 0;
  double energy = 0;
  for (int t = 0; t < 128; ++t) {
    for (int d = 0; d < 16; ++d) {
      const double x = GoldenSixteenths(t, d) / 16.0;
      const double difference = decoded[t * 16 + d] - x;
      error += difference * difference;
      energy += x * x;
      const bool int8 = d == 6 || d == 13 || d == 14;
      const bool bf16 = d == 7 || d == 15;
      ASSERT_LE(std::abs(difference), bf16 ? 0 : int8 ? 0.0125 : 0.4);
    }
  }
  EXPECT_NEAR(OpenBlob(AsBytes(blob_))->relative_error, std::sqrt(error / energy), 1e-6);
}

// The numbers that docs/format.md walks through.
TEST_F(Golden, WorkedExampleDecodesAsDocumented) {
  const std::vector<double> decoded = reference::DecodePart(part_, AsBytes(payload_));
  const auto at = [&](int t, int d) { return decoded[t * 16 + d]; };
  EXPECT_NEAR(at(64, 0), 0.7358, 5e-5);
  EXPECT_NEAR(at(16, 3), 3.0176, 5e-5);
  EXPECT_NEAR(at(0, 6), -1.8829, 5e-5);
  EXPECT_EQ(at(0, 7), -1.6875);
  EXPECT_EQ(GoldenSixteenths(64, 0) / 16.0, 0.75);
  EXPECT_EQ(GoldenSixteenths(16, 3) / 16.0, 2.9375);
  EXPECT_EQ(GoldenSixteenths(0, 6) / 16.0, -1.875);
  EXPECT_NEAR(OpenBlob(AsBytes(blob_))->relative_error, 0.05625, 5e-6);
  EXPECT_EQ(blob_.substr(88, 8), "\xa6\x02\x4c\xd8\xcc\xb6\xc0\x77");
}

TEST(RotatedGolden, ProfileIsReadAndWrittenAgain) {
  const std::string text = ReadGolden(kRotatedProfileFile);
  EXPECT_EQ(CodecProfile::FromJson(text).value(), RotatedGoldenProfile());
  EXPECT_EQ(RotatedGoldenProfile().ToPrettyJson(), text);
}

TEST(RotatedGolden, PayloadIsEncodedByteForByteAndDecodesToTheInput) {
  const ProfileLayout layout(RotatedGoldenProfile());
  const PartLayout& part = layout.part(0, Part::kK);
  const std::string golden = ReadGolden(kRotatedPayloadFile);
  std::vector<std::byte> payload(part.payload_bytes);
  const double error = reference::EncodePart(part, KvDtype::kBf16, GoldenDense(), payload);
  ASSERT_EQ(payload.size(), golden.size());
  for (size_t i = 0; i < payload.size(); ++i) {
    ASSERT_EQ(payload[i], AsBytes(golden)[i]) << "byte " << i;
  }
  EXPECT_LT(error, 0.6);
}

}  // namespace
}  // namespace fourierkv
