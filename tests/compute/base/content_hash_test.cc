#include "compute/base/content_hash.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace fourierkv {
namespace {

std::string Sha256Hex(const std::string& text) {
  return Sha256().AddBytes(text.data(), text.size()).Finish().ToHex();
}

std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// FIPS 180-2, appendix B, and the empty message.
TEST(Sha256, MatchesTheNistVectors) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Sha256Hex(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, AddsIntegersLittleEndian) {
  EXPECT_EQ(Sha256().AddU32(0x64636261).Finish().ToHex(), Sha256Hex("abcd"));
  EXPECT_EQ(Sha256().AddU64(0x6867666564636261).Finish().ToHex(), Sha256Hex("abcdefgh"));
}

TEST(Sha256, AddsStringsWithTheirLengthSoThatPartsCannotShift) {
  const std::string length{3, 0, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(Sha256().AddString("abc").Finish().ToHex(), Sha256Hex(length + "abc"));
  EXPECT_NE(Sha256().AddString("ab").AddString("c").Finish(),
            Sha256().AddString("a").AddString("bc").Finish());
  EXPECT_NE(Sha256().AddString("").AddString("a").Finish(),
            Sha256().AddString("a").AddString("").Finish());
}

TEST(Digest, ConvertsToRawAndHexAndBack) {
  const Digest digest = Sha256().AddU32(7).Finish();
  EXPECT_EQ(Digest::FromRaw(digest.ToString(), "key").value(), digest);
  EXPECT_EQ(Digest::FromHex(digest.ToHex(), "key").value(), digest);
  EXPECT_EQ(Digest::FromHex(std::string(64, 'A'), "key"),
            Digest::FromHex(std::string(64, 'a'), ""));
  EXPECT_FALSE(digest.IsZero());
  EXPECT_TRUE(Digest{}.IsZero());
}

TEST(Digest, RefusesOtherSizesAndDigitsNamingTheField) {
  for (const size_t size : {0, 1, 31, 33, 64}) {
    const auto digest = Digest::FromRaw(std::string(size, 'x'), "block_key");
    EXPECT_EQ(digest.status().code(), absl::StatusCode::kInvalidArgument) << size;
    EXPECT_NE(std::string(digest.status().message()).find("block_key"), std::string::npos);
  }
  std::string bad_digit(64, '0');
  bad_digit[63] = 'g';
  for (const std::string& hex : {std::string(), std::string(63, '0'), std::string(65, '0'),
                                 std::string(64, '\0'), bad_digit}) {
    const auto digest = Digest::FromHex(hex, "profile_id");
    EXPECT_EQ(digest.status().code(), absl::StatusCode::kInvalidArgument) << hex;
    EXPECT_NE(std::string(digest.status().message()).find("profile_id"), std::string::npos);
  }
}

TEST(Checksum, OfNothingIsTheKnownXxh3Value) {
  EXPECT_EQ(Checksum(AsBytes("")), 0x2d06800538d394c2u);
}

TEST(Checksum, OfTwoPartsIsThatOfTheWholeWhereverItIsSplit) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (const size_t size : {0, 1, 3, 17, 128, 240, 241, 1024, 1500}) {  // xxh3's own thresholds
    std::string text(size, '\0');
    for (char& c : text) c = static_cast<char>(rng());
    const uint64_t whole = Checksum(AsBytes(text));
    for (size_t split = 0; split <= size; ++split) {
      ASSERT_EQ(Checksum(AsBytes(text.substr(0, split)), AsBytes(text.substr(split))), whole)
          << size << " split at " << split;
    }
  }
}

}  // namespace
}  // namespace fourierkv
