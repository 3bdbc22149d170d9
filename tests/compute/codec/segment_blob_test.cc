#include "compute/codec/segment_blob.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace fourierkv {
namespace {

using testing::HasSubstr;

constexpr size_t kChecksumAt = 88;

BlobHeader CompactHeader(uint64_t payload_bytes) {
  BlobHeader header;
  header.form = SegmentForm::kCompact;
  header.part = Part::kV;
  header.dtype = KvDtype::kFp16;
  header.layer = 31;
  header.tokens = 256;
  header.kv_heads = 8;
  header.head_dim = 128;
  header.relative_error = 0.0625f;
  header.payload_bytes = payload_bytes;
  for (size_t i = 0; i < 32; ++i) header.block_key.bytes[i] = static_cast<uint8_t>(i + 1);
  for (size_t i = 0; i < 16; ++i) header.profile_prefix[i] = static_cast<uint8_t>(0xa0 + i);
  header.first_token = 0x0102030405060708;
  return header;
}

BlobHeader ExactHeader() {
  BlobHeader header;
  header.tokens = 3;
  header.kv_heads = 2;
  header.head_dim = 8;
  header.payload_bytes = 3 * 2 * 8 * 2;
  return header;
}

std::vector<std::byte> Seal(const BlobHeader& header) {
  std::vector<std::byte> blob(kBlobHeaderBytes + header.payload_bytes);
  for (size_t i = kBlobHeaderBytes; i < blob.size(); ++i) blob[i] = static_cast<std::byte>(i * 7);
  SealBlob(header, blob);
  return blob;
}

// Makes the checksum right again after a header was changed.
void Reseal(std::vector<std::byte>& blob) {
  const uint64_t checksum = Checksum(std::span(blob).first(kChecksumAt), BlobPayload(blob));
  for (int i = 0; i < 8; ++i) blob[kChecksumAt + i] = static_cast<std::byte>(checksum >> (8 * i));
}

TEST(SegmentBlob, OpensToTheHeaderThatSealedIt) {
  BlobHeader dense = ExactHeader();
  dense.form = SegmentForm::kDense;
  dense.relative_error = 0.5f;
  dense.profile_prefix[3] = 1;
  for (const BlobHeader& header : {CompactHeader(0), CompactHeader(1000), ExactHeader(), dense}) {
    const std::vector<std::byte> blob = Seal(header);
    const absl::StatusOr<BlobHeader> opened = OpenBlob(blob);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(*opened, header);
    EXPECT_EQ(BlobPayload(blob).size(), header.payload_bytes);
  }
}

TEST(SegmentBlob, FieldsStandLittleEndianAtTheirOffsets) {
  const std::vector<std::byte> blob = Seal(CompactHeader(16));
  std::string expected("FKV1\x02\x02\x01\x02", 8);
  expected += std::string("\x1f\0\0\0\0\1\0\0\x08\0\x80\0", 12);  // layer, tokens, heads, dim
  expected += std::string("\0\0\x80\x3d", 4);                     // 0.0625f
  expected += std::string("\x10\0\0\0\0\0\0\0", 8);               // payload bytes
  for (int i = 1; i <= 32; ++i) expected += static_cast<char>(i);
  for (int i = 0; i < 16; ++i) expected += static_cast<char>(0xa0 + i);
  expected += "\x08\x07\x06\x05\x04\x03\x02\x01";
  ASSERT_EQ(expected.size(), kChecksumAt);
  EXPECT_EQ(std::memcmp(blob.data(), expected.data(), expected.size()), 0);
}

TEST(SegmentBlob, EveryBitOfHeaderAndPayloadIsProtected) {
  std::vector<std::byte> blob = Seal(CompactHeader(40));
  for (size_t at = 0; at < blob.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      blob[at] ^= std::byte{1} << bit;
      ASSERT_EQ(OpenBlob(blob).status().code(), absl::StatusCode::kDataLoss)
          << "byte " << at << " bit " << bit;
      blob[at] ^= std::byte{1} << bit;
    }
  }
  EXPECT_TRUE(OpenBlob(blob).ok());
}

TEST(SegmentBlob, EveryTruncationAndExtensionIsDetected) {
  std::vector<std::byte> blob = Seal(ExactHeader());
  for (size_t size = 0; size < blob.size(); ++size) {
    ASSERT_EQ(OpenBlob(std::span(blob).first(size)).status().code(), absl::StatusCode::kDataLoss)
        << size;
  }
  blob.push_back(std::byte{0});
  EXPECT_EQ(OpenBlob(blob).status().code(), absl::StatusCode::kDataLoss);
}

struct BadField {
  const char* name;
  std::function<void(BlobHeader&)> make;
  const char* message;
};

const BadField kBadFields[] = {
    {"FormZero", [](BlobHeader& h) { h.form = static_cast<SegmentForm>(0); }, "form 0"},
    {"FormSix", [](BlobHeader& h) { h.form = static_cast<SegmentForm>(6); }, "form 6"},
    {"Part", [](BlobHeader& h) { h.part = static_cast<Part>(2); }, "part 2"},
    {"DtypeZero", [](BlobHeader& h) { h.dtype = static_cast<KvDtype>(0); }, "dtype 0"},
    {"DtypeThree", [](BlobHeader& h) { h.dtype = static_cast<KvDtype>(3); }, "dtype 3"},
    {"Layer", [](BlobHeader& h) { h.layer = 512; }, "layer 512"},
    {"NoTokens", [](BlobHeader& h) { h.tokens = 0; }, "tokens is 0"},
    {"ManyTokens", [](BlobHeader& h) { h.tokens = (1 << 20) + 1; }, "tokens is 1048577"},
    {"NoHeads", [](BlobHeader& h) { h.kv_heads = 0; }, "kv_heads is 0"},
    {"ManyHeads", [](BlobHeader& h) { h.kv_heads = 257; }, "kv_heads is 257"},
    {"OddHeadDim", [](BlobHeader& h) { h.head_dim = 12; }, "head_dim is 12"},
    {"LargeHeadDim", [](BlobHeader& h) { h.head_dim = 65528; }, "head_dim is 65528"},
    {"NegativeError", [](BlobHeader& h) { h.relative_error = -0.1f; }, "relative_error"},
    {"NanError", [](BlobHeader& h) { h.relative_error = std::numeric_limits<float>::quiet_NaN(); },
     "relative_error"},
    {"InfiniteError",
     [](BlobHeader& h) { h.relative_error = std::numeric_limits<float>::infinity(); },
     "relative_error"},
    {"ExactOfOtherSize",
     [](BlobHeader& h) {
       h.form = SegmentForm::kExact;
       h.tokens = 2;
     },
     "payload_bytes is 96; the exact form has 64"},
    {"DenseOfOtherSize",
     [](BlobHeader& h) {
       h.form = SegmentForm::kDense;
       h.head_dim = 16;
     },
     "payload_bytes is 96; the dense form has 192"},
    {"ArchivedAsLargeAsExact",
     [](BlobHeader& h) {
       h.form = SegmentForm::kArchived;
       h.tokens = 3;
     },
     "payload_bytes is 96; the archived form has from 1 to 95"},
    {"ExactWithError",
     [](BlobHeader& h) {
       h.form = SegmentForm::kExact;
       h.relative_error = 0.1f;
     },
     "relative_error of exact data"},
    {"ExactWithProfile",
     [](BlobHeader& h) {
       h.form = SegmentForm::kExact;
       h.profile_prefix[15] = 1;
     },
     "names a codec profile"},
};

class BlobField : public testing::TestWithParam<BadField> {};

// The checksum is right in these: a peer that computes it over nonsense is refused all the same.
TEST_P(BlobField, OutOfBoundsIsRefusedThoughTheChecksumIsRight) {
  BlobHeader header = ExactHeader();
  header.form = SegmentForm::kCompact;
  GetParam().make(header);
  const absl::Status status = OpenBlob(Seal(header)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(Every, BlobField, testing::ValuesIn(kBadFields),
                         [](const auto& info) { return info.param.name; });

TEST(SegmentBlob, OtherMagicVersionAndSizeAreRefusedThoughTheChecksumIsRight) {
  const std::pair<size_t, const char*> cases[] = {
      {0, "magic"}, {3, "magic"}, {4, "version 0"}, {24, "payload_bytes"}, {31, "payload_bytes"}};
  for (const auto& [at, message] : cases) {
    std::vector<std::byte> blob = Seal(CompactHeader(64));
    blob[at] ^= std::byte{2};
    Reseal(blob);
    const absl::Status status = OpenBlob(blob).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << at;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

TEST(SegmentBlob, RandomBytesNeverCrash) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::byte> blob = Seal(CompactHeader(rng() % 64));
    const size_t from = rng() % blob.size();
    for (size_t at = from; at < blob.size() && at < from + 1 + rng() % 8; ++at) {
      blob[at] = static_cast<std::byte>(rng());
    }
    blob.resize(rng() % 4 == 0 ? rng() % blob.size() : blob.size());
    if (blob.size() >= kBlobHeaderBytes && rng() % 2 == 0) Reseal(blob);
    const absl::StatusOr<BlobHeader> header = OpenBlob(blob);
    if (!header.ok()) {
      ASSERT_EQ(header.status().code(), absl::StatusCode::kDataLoss);
      continue;
    }
    std::vector<std::byte> again = blob;  // whatever opens is what it would be sealed as
    SealBlob(*header, again);
    ASSERT_EQ(again, blob);
  }
}

TEST(SegmentBlobDeathTest, SealingABlobOfTheWrongSizeStops) {
  std::vector<std::byte> blob(kBlobHeaderBytes + 15);
  EXPECT_DEATH(SealBlob(CompactHeader(16), blob), "");
  EXPECT_DEATH(SealBlob(CompactHeader(0), std::span(blob).first(95)), "");
}

TEST(SegmentBlob, FormsHaveNames) {
  EXPECT_STREQ(FormName(SegmentForm::kExact), "exact");
  EXPECT_STREQ(FormName(SegmentForm::kCompact), "compact");
  EXPECT_STREQ(FormName(SegmentForm::kDense), "dense");
}

}  // namespace
}  // namespace fourierkv
