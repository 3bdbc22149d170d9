// Codec profiles with `sequence`: what they may say, and their JSON form.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "compute/codec/profile.h"
#include "compute/codec/sequence_layout.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;

// One layer, two heads of 8 channels: K of head 0 wholly spectral, V of head 1 wholly resident.
CodecProfile Example() {
  CodecProfile profile;
  profile.name = "sequence";
  profile.geometry = {.layers = 1, .kv_heads = 2, .head_dim = 8};
  profile.basis = BasisKind::kDft;
  profile.segment_tokens = 0;
  profile.sequence = {.sink_tokens = 2, .recent_tokens = 5, .frequencies = 3};
  profile.heads.resize(4);
  profile.head(0, 0, Part::kK).bands = {{6, 32, {0, 1, 2, 3, 4, 5, 6, 7}}};
  profile.head(0, 0, Part::kV).bands = {{6, 16, {1, 3}}, {0, 16, {0, 2, 4, 5, 6, 7}}};
  profile.head(0, 1, Part::kK).bands = {{6, 16, {0}}, {0, 16, {1, 2, 3, 4, 5, 6, 7}}};
  profile.head(0, 1, Part::kV).bands = {{0, 16, {0, 1, 2, 3, 4, 5, 6, 7}}};
  return profile;
}

TEST(SequenceProfile, SurvivesItsJsonForm) {
  CodecProfile profile = Example();
  for (bool rescale : {false, true}) {
    profile.sequence->peak_rescale = rescale;
    const auto again = CodecProfile::FromJson(profile.ToJson());
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(*again, profile);
    const auto pretty = CodecProfile::FromJson(profile.ToPrettyJson());
    ASSERT_TRUE(pretty.ok()) << pretty.status();
    EXPECT_EQ(pretty->Id(), profile.Id());
  }
}

TEST(SequenceProfile, SaysItsScopeInTheCanonicalForm) {
  EXPECT_THAT(Example().ToJson(),
              HasSubstr(R"("segment_tokens":0,"sequence":{"frequencies":3,"recent_tokens":5,)"
                        R"("rescale":"none","sink_tokens":2}})"));
}

TEST(SequenceProfile, LaysOutEveryHead) {
  const SequenceLayout layout(Example());
  const SequencePart& k = layout.part(0, Part::kK);
  // 20 tokens: 7 exact ones, 13 in the middle.
  EXPECT_EQ(k.scope.MiddleTokens(20), 13);
  EXPECT_EQ(k.HeadsOffset(20), 16 + 7 * 2 * 8 * 2);
  const SequencePart::HeadOffsets first = k.Place(0, k.HeadsOffset(20), 13);
  EXPECT_EQ(first.coefficients, 240);
  EXPECT_EQ(first.residents, 240 + 8 * 6 * 4);
  EXPECT_EQ(first.end, first.residents);
  const SequencePart::HeadOffsets second = k.Place(1, first.end, 13);
  EXPECT_EQ(second.residents, 432 + 16);  // 12 bytes and padding
  EXPECT_EQ(second.end, 448 + 192);       // 7 * 13 * 2 = 182 bytes and padding
  EXPECT_EQ(k.PayloadBytes(20), second.end);
  // No middle yet: 13 tokens would leave 6, as many as there are states.
  EXPECT_EQ(k.PayloadBytes(13), 16 + 13 * 2 * 8 * 2);
}

TEST(SequenceProfile, KeepsGainsWhereItRescales) {
  CodecProfile profile = Example();
  const int64_t without = SequenceLayout(profile).PayloadBytes(20);
  profile.sequence->peak_rescale = true;
  // K: 64 bytes, then 8 padded to 16. V: 16 bytes, then none.
  EXPECT_EQ(SequenceLayout(profile).PayloadBytes(20), without + 64 + 16 + 16);
}

struct BadProfile {
  const char* name;
  std::function<void(CodecProfile&)> spoil;
  const char* message;
};

class RefusedSequenceProfile : public ::testing::TestWithParam<BadProfile> {};

TEST_P(RefusedSequenceProfile, IsRefusedNamingTheField) {
  CodecProfile profile = Example();
  ASSERT_TRUE(profile.Validate().ok()) << profile.Validate();
  GetParam().spoil(profile);
  const absl::Status status = profile.Validate();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

const BadProfile kBadProfiles[] = {
    {"Segments", [](CodecProfile& p) { p.segment_tokens = 256; }, "segment_tokens is 256"},
    {"Basis", [](CodecProfile& p) { p.basis = BasisKind::kDct2; }, "basis is dct2"},
    {"NoSink", [](CodecProfile& p) { p.sequence->sink_tokens = 0; }, "sequence.sink_tokens is 0"},
    {"HugeSink", [](CodecProfile& p) { p.sequence->sink_tokens = 4097; }, "1 to 4096"},
    {"NoRecent", [](CodecProfile& p) { p.sequence->recent_tokens = 0; }, "sequence.recent_tokens"},
    {"HugeRecent", [](CodecProfile& p) { p.sequence->recent_tokens = 65537; }, "1 to 65536"},
    {"NoFrequencies", [](CodecProfile& p) { p.sequence->frequencies = 0; }, "frequencies is 0"},
    {"HugeFrequencies", [](CodecProfile& p) { p.sequence->frequencies = 4097; }, "1 to 4096"},
    {"OtherStates", [](CodecProfile& p) { p.sequence->frequencies = 4; },
     "layers[0].k[0][0]: coefficients is 6; 4 frequencies have 8"},
    {"CoefficientBits", [](CodecProfile& p) { p.heads[0].bands[0].bits = 8; },
     "layers[0].k[0][0]: bits is 8"},
    {"ResidentBits", [](CodecProfile& p) { p.head(0, 1, Part::kV).bands[0].bits = 4; },
     "layers[0].v[1][0]: bits is 4"},
    {"TwoSpectralBands",
     [](CodecProfile& p) {
       p.heads[0].bands = {{6, 16, {0, 1, 2}}, {6, 16, {3, 4, 5, 6, 7}}};
     },
     "layers[0].k[0][1]: a head of a sequence profile has at most one"},
    {"Rotation",
     [](CodecProfile& p) {
       p.heads[0].rotation.assign(64, 0);
       for (int i = 0; i < 8; ++i) p.heads[0].rotation[i * 9] = 32767;
     },
     "layers[0].k[0] is rotated"},
    {"NegativeCoefficients", [](CodecProfile& p) { p.heads[0].bands[0].coefficients = -6; },
     "must not be negative"},
    {"SequenceBandsInASegmentProfile",
     [](CodecProfile& p) {
       p.sequence.reset();
       p.segment_tokens = 256;
     },
     "layers[0].k[0][0]: bits is 32"},
};

INSTANTIATE_TEST_SUITE_P(Wrong, RefusedSequenceProfile, ::testing::ValuesIn(kBadProfiles),
                         [](const auto& info) { return info.param.name; });

TEST(SequenceProfile, RefusesTextWithAnotherRescaleOrWithoutOne) {
  const std::string text = Example().ToJson();
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    changed.replace(changed.find(from), from.size(), to);
    return std::string(CodecProfile::FromJson(changed).status().message());
  };
  EXPECT_THAT(with("\"none\"", "\"best\""), HasSubstr("sequence.rescale: is 'best'"));
  EXPECT_THAT(with("\"rescale\":\"none\",", ""), HasSubstr("key 'rescale' is missing"));
  EXPECT_THAT(with("\"rescale\"", "\"scale\""), HasSubstr("sequence.scale: is an unknown key"));
}

}  // namespace
}  // namespace fourierkv
