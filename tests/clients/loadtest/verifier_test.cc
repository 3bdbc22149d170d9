// Values, the payloads that are made of them, and whether a wrong one is found.

#include "clients/loadtest/verifier.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "clients/loadtest/payload_maker.h"
#include "clients/loadtest/value_source.h"

namespace fourierkv::loadtest {
namespace {

using testing::HasSubstr;

constexpr int kTokens = 128;
constexpr KvGeometry kGeometry{.layers = 2, .kv_heads = 3, .head_dim = 16};

CodecProfile Profile() {
  CodecProfile profile = UniformProfile(kGeometry, 0.5, 0.5, 8, 4);
  profile.name = "verifier-test";
  profile.segment_tokens = kTokens;
  return profile;
}

Digest Key(uint64_t number) { return Sha256().AddU64(number).Finish(); }

class VerifierTest : public testing::Test {
 protected:
  VerifierTest() : layout_(Profile()), backend_(CreateCpuBackend(1)) {}

  // What a service would send of a put of `form`.
  FetchedBlob Blob(const ValueSource& values, SegmentForm form, const SegmentPlace& place,
                   int layer, Part part) {
    std::string bytes;
    FetchedBlob blob;
    if (form == SegmentForm::kExact) {
      auto maker = PayloadMaker::Create(&values, form, kTokens, nullptr, nullptr);
      (*maker)->Make(place, layer, part, &bytes);
      blob.header = {.form = form,
                     .part = part,
                     .layer = static_cast<uint32_t>(layer),
                     .tokens = static_cast<uint32_t>(place.tokens),
                     .kv_heads = kGeometry.kv_heads,
                     .head_dim = kGeometry.head_dim,
                     .payload_bytes = bytes.size(),
                     .block_key = place.key,
                     .first_token = static_cast<uint64_t>(place.index * kTokens)};
      bytes.insert(0, kBlobHeaderBytes, '\0');
      SealBlob(blob.header, std::as_writable_bytes(std::span(bytes)));
    } else {
      auto maker = PayloadMaker::Create(&values, form, kTokens, &layout_, backend_.get());
      EXPECT_TRUE(maker.ok()) << maker.status();
      (*maker)->Make(place, layer, part, &bytes);
    }
    blob.bytes = AlignedBuffer(bytes.size());
    std::memcpy(blob.bytes.data(), bytes.data(), bytes.size());
    const auto header = OpenBlob(blob.bytes.span());
    EXPECT_TRUE(header.ok()) << header.status();
    blob.header = *header;
    return blob;
  }

  ProfileLayout layout_;
  std::unique_ptr<ComputeBackend> backend_;
};

TEST_F(VerifierTest, WhatWasPutIsRight_InEveryForm) {
  for (const SegmentForm form :
       {SegmentForm::kExact, SegmentForm::kLossless, SegmentForm::kCompact}) {
    SCOPED_TRACE(FormName(form));
    const ValueSource values(5, kGeometry, form == SegmentForm::kExact ? 0 : kEncodedVariants);
    const Verifier verifier(&values, kTokens, &layout_, backend_.get());
    for (uint64_t n = 0; n < 6; ++n) {
      const SegmentPlace place{Key(n), static_cast<int64_t>(n), kTokens};
      for (int layer = 0; layer < kGeometry.layers; ++layer) {
        for (const Part part : kParts) {
          EXPECT_EQ(verifier.Check(Blob(values, form, place, layer, part), place),
                    absl::OkStatus());
        }
      }
    }
  }
}

TEST_F(VerifierTest, ATailIsRight) {
  const ValueSource values(5, kGeometry, 0);
  const Verifier verifier(&values, kTokens, nullptr, nullptr);
  const SegmentPlace place{Key(1), 3, 17};
  EXPECT_EQ(verifier.Check(Blob(values, SegmentForm::kExact, place, 1, Part::kV), place),
            absl::OkStatus());
}

// As a service would send it that lost a bit before it took the checksum.
TEST_F(VerifierTest, OneFlippedBitOfExactDataIsFound) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(absl::StrCat("seed ", seed));
  std::mt19937 rng(seed);
  const ValueSource values(5, kGeometry, 0);
  const Verifier verifier(&values, kTokens, nullptr, nullptr);
  const SegmentPlace place{Key(1), 2, kTokens};
  for (int i = 0; i < 200; ++i) {
    FetchedBlob blob = Blob(values, SegmentForm::kExact, place, 0, Part::kK);
    const size_t bit = rng() % (8 * blob.header.payload_bytes);
    blob.bytes.data()[kBlobHeaderBytes + bit / 8] ^= std::byte(1u << (bit % 8));
    const absl::Status status = verifier.Check(blob, place);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << bit;
    EXPECT_THAT(std::string(status.message()), HasSubstr("segment 2"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("layer 0, K, exact"));
  }
}

TEST_F(VerifierTest, AnErrorLargerThanStatedIsFound) {
  const ValueSource values(5, kGeometry, kEncodedVariants);
  const Verifier verifier(&values, kTokens, &layout_, backend_.get());
  const SegmentPlace place{Key(1), 2, kTokens};
  FetchedBlob blob = Blob(values, SegmentForm::kCompact, place, 1, Part::kV);
  ASSERT_GT(blob.header.relative_error, 0.01F) << "or else this tests nothing";
  blob.header.relative_error *= 0.9F;
  EXPECT_EQ(verifier.Check(blob, place).code(), absl::StatusCode::kDataLoss);
}

TEST_F(VerifierTest, DataOfAnotherSegmentOrPlaceIsFound) {
  const ValueSource values(5, kGeometry, 0);
  const Verifier verifier(&values, kTokens, nullptr, nullptr);
  const SegmentPlace place{Key(1), 2, kTokens};
  const FetchedBlob right = Blob(values, SegmentForm::kExact, place, 0, Part::kK);
  EXPECT_FALSE(verifier.Check(right, {Key(2), 2, kTokens}).ok()) << "values of another key";
  EXPECT_FALSE(verifier.Check(right, {Key(1), 3, kTokens}).ok()) << "first_token";
  EXPECT_FALSE(verifier.Check(right, {Key(1), 2, kTokens - 1}).ok()) << "tokens";
  for (const auto& [layer, part] : {std::pair(1, Part::kK), std::pair(0, Part::kV)}) {
    FetchedBlob swapped = Blob(values, SegmentForm::kExact, place, 0, Part::kK);
    swapped.header.layer = static_cast<uint32_t>(layer);
    swapped.header.part = part;
    EXPECT_FALSE(verifier.Check(swapped, place).ok());
  }
}

TEST_F(VerifierTest, ProfilesAndFormsThatWereNotAskedForAreFound) {
  const ValueSource values(5, kGeometry, kEncodedVariants);
  const Verifier verifier(&values, kTokens, &layout_, backend_.get());
  const SegmentPlace place{Key(1), 2, kTokens};
  FetchedBlob blob = Blob(values, SegmentForm::kCompact, place, 0, Part::kK);
  blob.header.profile_prefix[0] ^= 1;
  EXPECT_FALSE(verifier.Check(blob, place).ok());
  blob = Blob(values, SegmentForm::kCompact, place, 0, Part::kK);
  blob.header.form = SegmentForm::kArchived;
  EXPECT_FALSE(verifier.Check(blob, place).ok());
  blob.header.form = SegmentForm::kExact;
  EXPECT_FALSE(verifier.Check(blob, place).ok()) << "another size";
  blob.header.form = SegmentForm::kLossless;
  EXPECT_FALSE(verifier.Check(blob, place).ok());
}

TEST(ValueSourceTest, ValuesArePureFunctionsOfSeedAndKey) {
  const size_t count = kGeometry.PartBytes(kTokens) / 2;
  const auto fill = [&](uint64_t seed, uint64_t key, int layer, Part part) {
    std::vector<uint16_t> values(count);
    ValueSource(seed, kGeometry, 0).Fill(Key(key), layer, part, kTokens, values);
    return values;
  };
  const auto base = fill(1, 1, 0, Part::kK);
  EXPECT_EQ(fill(1, 1, 0, Part::kK), base);
  EXPECT_NE(fill(2, 1, 0, Part::kK), base);
  EXPECT_NE(fill(1, 2, 0, Part::kK), base);
  EXPECT_NE(fill(1, 1, 1, Part::kK), base);
  EXPECT_NE(fill(1, 1, 0, Part::kV), base);
}

// Stored caches outlive the program: what a release writes, the next one must still know.
TEST(ValueSourceTest, ValuesDoNotChangeFromOneReleaseToTheNext) {
  std::vector<uint16_t> values(kGeometry.PartBytes(kTokens) / 2);
  ValueSource(1, kGeometry, 0).Fill(Key(1), 1, Part::kV, kTokens, values);
  EXPECT_EQ(Checksum(std::as_bytes(std::span(values))), 15785860507328440440u);
}

}  // namespace
}  // namespace fourierkv::loadtest
