#include "compute/codec/segment_layout.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv {
namespace {

TEST(SegmentLayout, PlacesBandsAtMultiplesOf16WithPadding) {
  CodecProfile profile;
  profile.name = "four kinds";
  profile.geometry = {.layers = 1, .kv_heads = 2, .head_dim = 16};
  profile.segment_tokens = 128;
  const HeadProfile four{{{2, 8, {0, 2, 4, 6, 8, 10}},
                          {0, 4, {1, 3, 5, 7, 9}},
                          {0, 8, {11, 12, 13}},
                          {0, 16, {14, 15}}}};
  profile.heads.assign(4, four);
  ASSERT_TRUE(profile.Validate().ok());
  const ProfileLayout layout(profile);
  const PartLayout& part = layout.part(0, Part::kV);
  EXPECT_EQ(part.kv_heads, 2);
  EXPECT_EQ(part.head_dim, 16);
  EXPECT_EQ(part.segment_tokens, 128);
  ASSERT_EQ(part.heads.size(), 2u);
  const HeadLayout& head = part.heads[0];
  EXPECT_EQ(head.max_coefficients, 2);
  ASSERT_EQ(head.bands.size(), 4u);

  EXPECT_EQ(head.bands[0].scale_offset, 0);  // 6 scales, 2 x 6 coefficients, 8 of padding
  EXPECT_EQ(head.bands[0].data_offset, 12);
  EXPECT_EQ(head.bands[0].first, 0);

  EXPECT_EQ(head.bands[1].scale_offset, 32);  // 5 scales, 5 offsets, 12 of padding, 5 x 16 words
  EXPECT_EQ(head.bands[1].zero_offset, 42);
  EXPECT_EQ(head.bands[1].data_offset, 64);
  EXPECT_EQ(head.bands[1].first, 6);

  EXPECT_EQ(head.bands[2].scale_offset, 384);  // 3 scales, 3 offsets, 4 of padding, 3 x 128 bytes
  EXPECT_EQ(head.bands[2].zero_offset, 390);
  EXPECT_EQ(head.bands[2].data_offset, 400);
  EXPECT_EQ(head.bands[2].first, 11);

  EXPECT_EQ(head.bands[3].data_offset, 784);  // 2 x 128 bf16
  EXPECT_EQ(head.bands[3].first, 14);
  EXPECT_EQ(head.bytes, 1296);

  EXPECT_EQ(part.heads[1].offset, 1296);
  EXPECT_EQ(part.heads[1].bands[0].scale_offset, 1296);
  EXPECT_EQ(part.payload_bytes, 2592);
  EXPECT_EQ(layout.SegmentPayloadBytes(), 2 * 2592);
  EXPECT_DOUBLE_EQ(layout.BitsPerElement(), 8.0 * 2592 / (2 * 128 * 16));
}

TEST(SegmentLayout, NarrowAndWideBandsStandAsDocumented) {
  CodecProfile profile;
  profile.name = "others";
  profile.geometry = {.layers = 1, .kv_heads = 1, .head_dim = 16};
  profile.segment_tokens = 128;
  profile.heads.resize(2);
  for (HeadProfile& head : profile.heads) {
    head.bands = {
        {3, 16, {0, 1, 2, 3, 4, 5}}, {0, 2, {6, 7, 8, 9, 10}}, {0, 3, {11, 12, 13, 14, 15}}};
  }
  ASSERT_TRUE(profile.Validate().ok());
  const ProfileLayout layout(profile);
  const HeadLayout& head = layout.part(0, Part::kK).heads[0];
  EXPECT_EQ(head.rotation, nullptr);
  EXPECT_EQ(head.bands[0].data_offset, 0);    // 3 x 6 bf16, 12 of padding
  EXPECT_EQ(head.bands[1].scale_offset, 48);  // 5 scales, 5 offsets, 12 of padding, 5 x 8 words
  EXPECT_EQ(head.bands[1].zero_offset, 58);
  EXPECT_EQ(head.bands[1].data_offset, 80);
  EXPECT_EQ(head.bands[2].scale_offset, 240);  // as before, then 5 x 4 words
  EXPECT_EQ(head.bands[2].zero_offset, 250);
  EXPECT_EQ(head.bands[2].data_offset, 272);
  EXPECT_EQ(head.bands[2].high_offset, 272 + 5 * 8 * 4);
  EXPECT_EQ(head.bytes, 512);
}

TEST(SegmentLayout, RotationsAreGivenAsFloatsToTheHeadsThatHaveThem) {
  std::mt19937_64 rng(std::random_device{}());
  CodecProfile profile = UniformProfile({.layers = 1, .kv_heads = 3, .head_dim = 16}, 0, 0, 1, 4);
  HeadProfile& rotated = profile.head(0, 1, Part::kV);
  rotated.rotation = RandomRotation(rng, 16);
  const ProfileLayout layout(profile);
  const PartLayout& v = layout.part(0, Part::kV);
  EXPECT_EQ(v.heads[0].rotation, nullptr);
  EXPECT_EQ(v.heads[2].rotation, nullptr);
  EXPECT_EQ(layout.part(0, Part::kK).heads[1].rotation, nullptr);
  for (size_t i = 0; i < 256; ++i) {
    ASSERT_EQ(v.heads[1].rotation[i], static_cast<float>(rotated.rotation[i]) / 32767.0f);
  }
}

TEST(SegmentLayout, DefaultProfileCompresses3Point9Times) {
  const ProfileLayout layout(DefaultProfile({.layers = 32, .kv_heads = 8, .head_dim = 128}));
  EXPECT_DOUBLE_EQ(layout.BitsPerElement(), 4 + 32.0 / 256);  // scale and offset of each channel
  EXPECT_GT(16 / layout.BitsPerElement(), 3.87);
}

TEST(SegmentLayout, Int4ResidentWithSpectralKeysCompressesNearlyTenTimes) {
  const ProfileLayout layout(
      UniformProfile({.layers = 32, .kv_heads = 8, .head_dim = 128}, 0.8, 0.5, 8, 4));
  EXPECT_GT(16 / layout.BitsPerElement(), 9.0);
}

// Bytes of a band without padding.
int64_t BandBytes(const BandLayout& band, int segment_tokens) {
  if (band.spectral()) {
    return band.size * (band.bits == 16 ? 2 * band.coefficients : 2 + band.coefficients);
  }
  return band.size * ((band.bits < 16 ? 4 : 0) + segment_tokens * band.bits / 8);
}

TEST(SegmentLayout, RandomBandsFollowEachOtherAndHoldEveryChannelOnce) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (int i = 0; i < 50; ++i) {
    const CodecProfile profile = RandomProfile(rng);
    const ProfileLayout layout(profile);
    EXPECT_EQ(layout.profile(), profile);
    EXPECT_EQ(layout.id(), profile.Id());
    int64_t total = 0;
    for (int l = 0; l < profile.geometry.layers; ++l) {
      for (Part p : kParts) {
        const PartLayout& part = layout.part(l, p);
        int64_t offset = 0;
        ASSERT_EQ(part.heads.size(), profile.geometry.kv_heads);
        for (int h = 0; h < part.kv_heads; ++h) {
          const HeadLayout& head = part.heads[h];
          const HeadProfile& wanted = profile.head(l, h, p);
          ASSERT_EQ(head.offset, offset);
          ASSERT_EQ(head.bands.size(), wanted.bands.size());
          int first = 0;
          for (size_t b = 0; b < head.bands.size(); ++b) {
            const BandLayout& band = head.bands[b];
            const Band& from = wanted.bands[b];
            ASSERT_EQ(band.bits < 16 ? band.scale_offset : band.data_offset, offset);
            ASSERT_EQ(band.bits, from.bits);
            ASSERT_EQ(band.coefficients, from.coefficients);
            ASSERT_EQ(std::vector<uint16_t>(band.channels, band.channels + band.size),
                      from.channels);
            ASSERT_EQ(band.first, first);
            ASSERT_LE(band.coefficients, head.max_coefficients);
            ASSERT_LE(band.coefficients, part.basis->columns());
            first += band.size;
            offset += (BandBytes(band, part.segment_tokens) + 15) / 16 * 16;
          }
          ASSERT_EQ(first, part.head_dim);
          ASSERT_EQ(head.bytes, offset - head.offset);
        }
        ASSERT_EQ(part.payload_bytes, offset);
        ASSERT_EQ(part.basis->kind(), profile.basis);
        ASSERT_EQ(part.basis->segment_tokens(), profile.segment_tokens);
        total += offset;
      }
    }
    ASSERT_EQ(layout.SegmentPayloadBytes(), total);
  }
}

TEST(SegmentLayout, PartsShareOneBasis) {
  const ProfileLayout layout(
      UniformProfile({.layers = 3, .kv_heads = 1, .head_dim = 8}, 1, 0, 5, 4));
  EXPECT_EQ(layout.part(0, Part::kK).basis, layout.part(2, Part::kV).basis);
  EXPECT_EQ(layout.part(0, Part::kK).basis->columns(), 5);
}

}  // namespace
}  // namespace fourierkv
