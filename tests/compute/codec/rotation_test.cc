// Rotations: rounding, the test for orthogonality, and their text.

#include "compute/codec/rotation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "absl/strings/escaping.h"
#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

TEST(Rotation, RandomOrthogonalMatricesSurviveRounding) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (const int head_dim : {8, 40, 128, 256}) {
    const absl::Status status = CheckRotation(RandomRotation(rng, head_dim), head_dim);
    EXPECT_TRUE(status.ok()) << status;
  }
}

TEST(Rotation, EntriesAreClampedToTheRangeOf16Bits) {
  const float u[] = {1.0f, -1.0f, 1.5f, -1e9f, 0.5f};
  EXPECT_THAT(QuantizeRotation(u), testing::ElementsAre(32767, -32767, 32767, -32767, 16384));
}

TEST(Rotation, ColumnsThatAreNotOrthonormalAreRefused) {
  std::mt19937_64 rng(std::random_device{}());
  std::vector<int16_t> repeated = RandomRotation(rng, 16);
  for (int d = 0; d < 16; ++d) repeated[16 * d + 5] = repeated[16 * d + 2];
  EXPECT_THAT(std::string(CheckRotation(repeated, 16).message()),
              HasSubstr("columns 2 and 5 have the inner product"));
  std::vector<int16_t> shrunk = RandomRotation(rng, 16);
  for (int16_t& value : shrunk) value = static_cast<int16_t>(value * 0.999);
  EXPECT_THAT(std::string(CheckRotation(shrunk, 16).message()), HasSubstr("columns 0 and 0"));
}

// Each entry is within its bound, all together they would spoil what is turned back.
TEST(Rotation, ManySmallFaultsAreRefusedToo) {
  std::mt19937_64 rng(std::random_device{}());
  std::vector<int16_t> rotation = RandomRotation(rng, 256);
  std::uniform_int_distribution<int> noise(-5, 5);
  for (int16_t& value : rotation) value = static_cast<int16_t>(value + noise(rng));
  const absl::Status status = CheckRotation(rotation, 256);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rotation is not orthogonal: |U^T U - I|"));
}

TEST(RotationText, IsStandardBase64OfLittleEndianValues) {
  std::mt19937_64 rng(std::random_device{}());
  for (int size = 0; size < 20; ++size) {
    std::vector<int16_t> values(size);
    std::string bytes;
    for (int16_t& value : values) {
      value = static_cast<int16_t>(rng());
      bytes.push_back(static_cast<char>(value & 0xff));
      bytes.push_back(static_cast<char>(value >> 8 & 0xff));
    }
    const std::string text = RotationToBase64(values);
    EXPECT_EQ(text, absl::Base64Escape(bytes));
    EXPECT_EQ(text.size(), RotationBase64Size(size));
    EXPECT_EQ(RotationFromBase64(text).value(), values);
  }
}

TEST(RotationText, AnythingElseIsRefused) {
  for (const char* text : {"A", "AA", "AAA", "AAA\n", " AAA", "AAA =", "A===", "====", "AA==",
                           "AAA=AAA=", "A-A=", "AAB=", "AAAA", "AAAAAAA=AAAAAAAA"}) {
    EXPECT_EQ(RotationFromBase64(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

}  // namespace
}  // namespace fourierkv
