#include "compute/codec/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <string>

#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

constexpr KvGeometry kSmall{.layers = 2, .kv_heads = 3, .head_dim = 16};

// K and V of every head: channels 0-7 spectral, 8-15 resident.
CodecProfile Valid() { return UniformProfile(kSmall, 0.5, 0.5, 8, 4); }

TEST(Profile, RandomOnesAreValid) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (int i = 0; i < 100; ++i) {
    const absl::Status status = RandomProfile(rng).Validate();
    ASSERT_TRUE(status.ok()) << status;
  }
}

struct Fault {
  const char* name;
  std::function<void(CodecProfile&)> make;
  const char* message;  // what Validate says
};

HeadProfile& Faulty(CodecProfile& p) { return p.head(1, 2, Part::kV); }

const Fault kFaults[] = {
    {"NoName", [](CodecProfile& p) { p.name = ""; }, "name must be"},
    {"LongName", [](CodecProfile& p) { p.name = std::string(129, 'x'); }, "name must be"},
    {"ControlInName", [](CodecProfile& p) { p.name = "a\nb"; }, "name must be"},
    {"NonAsciiName", [](CodecProfile& p) { p.name = "\xc3\xa9"; }, "name must be"},
    {"Geometry", [](CodecProfile& p) { p.geometry.head_dim = 12; }, "geometry.head_dim is 12"},
    {"ManyLayers", [](CodecProfile& p) { p.geometry.layers = 1000000000; }, "geometry.layers"},
    {"Basis", [](CodecProfile& p) { p.basis = static_cast<BasisKind>(9); }, "basis"},
    {"SegmentTokens", [](CodecProfile& p) { p.segment_tokens = 64; }, "segment_tokens is 64"},
    {"OddSegmentTokens", [](CodecProfile& p) { p.segment_tokens = 300; }, "segment_tokens is 300"},
    {"HeadMissing", [](CodecProfile& p) { p.heads.pop_back(); }, "layers hold 11 heads"},
    {"HeadTooMany", [](CodecProfile& p) { p.heads.emplace_back(); }, "layers hold 13 heads"},
    {"NoBands", [](CodecProfile& p) { Faulty(p).bands.clear(); },
     "layers[1].v[2]: channel 0 is in no band"},
    {"RotationOfOtherSize", [](CodecProfile& p) { Faulty(p).rotation.assign(8 * 8, 0); },
     "layers[1].v[2].rotation has 64 entries; it must have head_dim^2 = 256"},
    {"RotationIsZero", [](CodecProfile& p) { Faulty(p).rotation.assign(16 * 16, 0); },
     "layers[1].v[2].rotation is not orthogonal: columns 0 and 0 have the inner product 0"},
    {"EvidenceHasManyKeys",
     [](CodecProfile& p) {
       for (int i = 0; i < 33; ++i) p.evidence[std::to_string(i)] = "";
     },
     "evidence has 33 entries"},
    {"EvidenceHasAnEmptyKey", [](CodecProfile& p) { p.evidence[""] = ""; }, "evidence: a key"},
    {"EvidenceHasALongKey", [](CodecProfile& p) { p.evidence[std::string(65, 'x')] = ""; },
     "evidence: a key is not 1 to 64"},
    {"EvidenceHasALongValue", [](CodecProfile& p) { p.evidence["x"] = std::string(257, 'x'); },
     "evidence.x must be at most 256"},
    {"EvidenceHasANewline", [](CodecProfile& p) { p.evidence["x"] = "\n"; }, "evidence.x must be"},
    {"ThirteenBands", [](CodecProfile& p) { Faulty(p).bands.resize(13); },
     "layers[1].v[2] has 13 bands"},
    {"EmptyBand",
     [](CodecProfile& p) {
       Faulty(p).bands.push_back({0, 8, {}});
     },
     "layers[1].v[2][2]: has no channels"},
    {"ChannelOutOfRange", [](CodecProfile& p) { Faulty(p).bands[1].channels.back() = 16; },
     "layers[1].v[2][1]: channel 16 is not below head_dim = 16"},
    {"ChannelRepeated", [](CodecProfile& p) { Faulty(p).bands[1].channels[1] = 8; },
     "layers[1].v[2][1]: channel 8 stands behind 8"},
    {"ChannelsDecrease", [](CodecProfile& p) { Faulty(p).bands[1].channels[1] = 3; },
     "layers[1].v[2][1]: channel 3 stands behind 8"},
    {"ChannelInTwoBands", [](CodecProfile& p) { Faulty(p).bands[1].channels[0] = 7; },
     "layers[1].v[2]: channel 7 is in two bands"},
    {"ChannelInNoBand", [](CodecProfile& p) { Faulty(p).bands[0].channels.pop_back(); },
     "layers[1].v[2]: channel 7 is in no band"},
    {"TooManyCoefficients", [](CodecProfile& p) { Faulty(p).bands[0].coefficients = 65; },
     "layers[1].v[2][0]: coefficients is 65"},
    {"NegativeCoefficients", [](CodecProfile& p) { Faulty(p).bands[1].coefficients = -1; },
     "layers[1].v[2][1]: coefficients is -1"},
    {"MeanHasOneCoefficient", [](CodecProfile& p) { p.basis = BasisKind::kMean; },
     "basis mean allows at most 1"},
    {"SpectralBits", [](CodecProfile& p) { Faulty(p).bands[0].bits = 4; },
     "layers[1].v[2][0]: bits is 4"},
    {"ResidentBits", [](CodecProfile& p) { Faulty(p).bands[1].bits = 5; },
     "layers[1].v[2][1]: bits is 5"},
    {"SpectralLast", [](CodecProfile& p) { std::swap(Faulty(p).bands[0], Faulty(p).bands[1]); },
     "layers[1].v[2][1]: is spectral behind a resident band"},
};

class ProfileFault : public testing::TestWithParam<Fault> {};

TEST_P(ProfileFault, IsNamedByValidate) {
  CodecProfile profile = Valid();
  ASSERT_TRUE(profile.Validate().ok());
  GetParam().make(profile);
  const absl::Status status = profile.Validate();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(Every, ProfileFault, testing::ValuesIn(kFaults),
                         [](const auto& info) { return info.param.name; });

TEST(Profile, FitsOnlyItsOwnGeometry) {
  EXPECT_TRUE(Valid().CheckFits(kSmall).ok());
  const absl::Status status = Valid().CheckFits({.layers = 2, .kv_heads = 3, .head_dim = 64});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("2 layers, 3 KV heads, head dimension 16"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("2 layers, 3 KV heads, head dimension 64"));
}

TEST(Profile, HeadsStandByLayerThenHeadThenPart) {
  CodecProfile profile = Valid();
  profile.head(1, 2, Part::kV).bands[0].coefficients = 5;
  EXPECT_EQ(profile.heads[(1 * 3 + 2) * 2 + 1].bands[0].coefficients, 5);
}

TEST(DefaultProfile, KeepsEveryChannelAtFourBits) {
  const KvGeometry llama{.layers = 32, .kv_heads = 8, .head_dim = 128};
  const CodecProfile profile = DefaultProfile(llama);
  EXPECT_TRUE(profile.Validate().ok());
  EXPECT_TRUE(profile.CheckFits(llama).ok());
  EXPECT_EQ(profile.name, "default-int4");
  for (const HeadProfile& head : profile.heads) {
    ASSERT_EQ(head.bands.size(), 1u);
    ASSERT_EQ(head.bands[0].bits, 4);
    ASSERT_FALSE(head.bands[0].spectral());
  }
}

TEST(UniformProfile, RoundsTheSpectralShareToTheNearestChannelCount) {
  const CodecProfile profile = UniformProfile(kSmall, 0.8, 0.09, 8, 16);  // 12.8 and 1.44 channels
  EXPECT_TRUE(profile.Validate().ok());
  const HeadProfile& k = profile.head(0, 0, Part::kK);
  ASSERT_EQ(k.bands.size(), 2u);
  EXPECT_EQ(k.bands[0].channels.size(), 13u);
  EXPECT_EQ(k.bands[0].coefficients, 8);
  EXPECT_EQ(k.bands[1], (Band{0, 16, {13, 14, 15}}));
  EXPECT_EQ(profile.head(1, 2, Part::kV).bands[0].channels, std::vector<uint16_t>{0});
}

TEST(UniformProfile, LeavesOutEmptyBands) {
  const CodecProfile profile = UniformProfile(kSmall, 1.0, 0.0, 4, 8);
  EXPECT_TRUE(profile.Validate().ok());
  ASSERT_EQ(profile.head(0, 0, Part::kK).bands.size(), 1u);
  EXPECT_TRUE(profile.head(0, 0, Part::kK).bands[0].spectral());
  ASSERT_EQ(profile.head(0, 0, Part::kV).bands.size(), 1u);
  EXPECT_EQ(profile.head(0, 0, Part::kV).bands[0].bits, 8);
}

}  // namespace
}  // namespace fourierkv
