#include "clients/search/representation.h"

#include "compute/codec/profile.h"
#include "compute/codec/segment_layout.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fourierkv {
namespace {

TEST(RepresentationTest, NamesAreReadCheapestFirstAndOnlyOnce) {
  const auto parsed = ParseRepresentations("bf16,int4,M8,M1x16,int2,M8", BasisKind::kDct2, 256);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  std::vector<std::string> names;
  for (const Representation& r : *parsed) names.push_back(RepresentationName(r));
  EXPECT_THAT(names, testing::ElementsAre("M1x16", "M8", "int2", "int4", "bf16"));
}

TEST(RepresentationTest, EveryDefaultOneIsKnown) {
  for (const int tokens : {128, 256, 512, 1024}) {
    EXPECT_TRUE(ParseRepresentations(kDefaultRepresentations, BasisKind::kDct2, tokens).ok());
  }
}

TEST(RepresentationTest, RefusesWhatNoBandCanHold) {
  for (const char* name : {"", "int", "int5", "int16", "M0", "M65", "M8x8", "Mx16", "fp8", "M8,"}) {
    EXPECT_EQ(ParseRepresentations(name, BasisKind::kDct2, 256).status().code(),
              absl::StatusCode::kInvalidArgument)
        << name;
  }
  EXPECT_FALSE(ParseRepresentations("M2", BasisKind::kMean, 256).ok());
}

TEST(RepresentationTest, BitsAreThoseOfTheLayoutButForPadding) {
  const auto all = ParseRepresentations(kDefaultRepresentations, BasisKind::kDct2, 256);
  ASSERT_TRUE(all.ok()) << all.status();
  for (const Representation& r : *all) {
    SCOPED_TRACE(RepresentationName(r));
    CodecProfile profile;
    profile.name = "one";
    profile.geometry = {1, 1, 64};
    Band band{r.coefficients, r.bits, {}};
    for (int d = 0; d < 64; ++d) band.channels.push_back(static_cast<uint16_t>(d));
    profile.heads.assign(2, HeadProfile{{band}});
    ASSERT_TRUE(profile.Validate().ok());
    EXPECT_DOUBLE_EQ(ProfileLayout(profile).BitsPerElement(), BitsPerValue(r, 256));
  }
}

}  // namespace
}  // namespace fourierkv
