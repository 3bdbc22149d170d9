#include "tests/bench/gpu_attention_cases.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "compute/codec/segment_layout.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;

std::string WhyRefused(const std::string& text) {
  const absl::StatusOr<AttentionCase> parsed = ParseAttentionCase(text);
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(parsed.status().message());
}

TEST(AttentionCases, AreReadAsTheyAreWritten) {
  const AttentionCase expected = {32, 32768, "int4-9.7x", true};
  EXPECT_EQ(*ParseAttentionCase("32x32k:int4-9.7x+exact"), expected);
  EXPECT_EQ(*ParseAttentionCase("32x32768:int4-9.7x+exact"), expected);
  EXPECT_EQ(ParseAttentionCase("1x768:plain-dense")->Name(), "1x768:plain-dense");
  for (const bool quick : {false, true}) {
    for (const AttentionCase& c : StandardAttentionCases(quick)) {
      EXPECT_EQ(*ParseAttentionCase(c.Name()), c) << c.Name();
    }
  }
}

TEST(AttentionCases, DivideTheContextIntoSegmentsAndPages) {
  for (const AttentionCase& c : StandardAttentionCases(/*quick=*/false)) {
    EXPECT_EQ(c.segments() * kBenchSegmentTokens + c.pages() * kBenchPageTokens, c.tokens)
        << c.Name();
  }
  EXPECT_EQ(ParseAttentionCase("1x4k:int8")->pages(), 0);
  EXPECT_EQ(ParseAttentionCase("1x4k:int8+exact")->pages(), (256 + 1024) / 64);
  EXPECT_EQ(ParseAttentionCase("1x1280:int8+exact")->segments(), 0);
  EXPECT_EQ(ParseAttentionCase("1x4k:plain-dense")->segments(), 0);
  // What 32 sequences of 32k tokens take in Llama-3.1-8B, a layer.
  EXPECT_EQ(ParseAttentionCase("32x32k:int8")->DenseBytes(), int64_t{4} << 30);
}

TEST(AttentionCases, SayWhatIsWrong) {
  EXPECT_THAT(WhyRefused(""), HasSubstr("batch"));
  EXPECT_THAT(WhyRefused("0x32k:int8"), HasSubstr("batch must be from 1 to 4096"));
  EXPECT_THAT(WhyRefused("4097x4k:int8"), HasSubstr("batch"));
  EXPECT_THAT(WhyRefused("1x:int8"), HasSubstr("tokens must be a multiple of 256"));
  EXPECT_THAT(WhyRefused("1x100:int8"), HasSubstr("tokens must be a multiple of 256"));
  EXPECT_THAT(WhyRefused("1x-4k:int8"), HasSubstr("tokens"));
  EXPECT_THAT(WhyRefused("1x99999999k:int8"), HasSubstr("tokens"));
  EXPECT_THAT(WhyRefused("4096x1024k:int8"), HasSubstr("tokens in all"));
  EXPECT_THAT(WhyRefused("1x4k"), HasSubstr("no profile ''"));
  EXPECT_THAT(WhyRefused("1x4k:int5"), HasSubstr("bf16, int8, int4-9.7x, int4-15x"));
  EXPECT_THAT(WhyRefused("1x1k:int8+exact"), HasSubstr("at least 1280"));
  EXPECT_THAT(WhyRefused("1x4k:plain-dense+exact"), HasSubstr("exact without"));
}

TEST(AttentionProfiles, AreValidAndAsSmallAsTheirNamesSay) {
  const std::vector<double> ratios = {4.5, 8.5, 9.7, 14.7};
  for (size_t i = 0; i < AttentionProfileNames().size(); ++i) {
    const std::string& name = AttentionProfileNames()[i];
    const absl::StatusOr<CodecProfile> profile = AttentionProfile(name);
    ASSERT_TRUE(profile.ok()) << profile.status();
    ASSERT_TRUE(profile->Validate().ok()) << profile->Validate();
    EXPECT_NEAR(16 / ProfileLayout(*profile).BitsPerElement(), ratios[i], 0.03 * ratios[i]) << name;
  }
  EXPECT_EQ(AttentionProfile("fp4").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace fourierkv
