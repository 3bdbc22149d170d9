// What is read from published lists of channels, and what is refused.

#include "compute/model/compressed_dims.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace fourierkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr KvGeometry kGeometry{.layers = 1, .kv_heads = 2, .head_dim = 8};
const ImportOptions kOptions{.name = "imported", .scope = {.frequencies = 5}};

// K of head 0 wholly compressed, V of head 1 not at all.
constexpr char kSplit[] = R"({"Layer_0": {
  "kc_list": [0, 1, 2, 3, 4, 5, 6, 7, 9, 15], "kc_h_list": [8, 10],
  "kn_list": [8, 10, 11, 12, 13, 14], "kn_h_list": [0, 6],
  "vc_list": [2, 5], "vc_h_list": [2, 2],
  "vn_list": [0, 1, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], "vn_h_list": [6, 14]}})";

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

std::vector<uint16_t> Spectral(const CodecProfile& profile, int head, Part part) {
  for (const Band& band : profile.head(0, head, part).bands) {
    if (band.spectral()) return band.channels;
  }
  return {};
}

void ExpectTheChannels(const CodecProfile& profile) {
  EXPECT_THAT(Spectral(profile, 0, Part::kK), ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
  EXPECT_THAT(Spectral(profile, 1, Part::kK), ElementsAre(1, 7));
  EXPECT_THAT(Spectral(profile, 0, Part::kV), ElementsAre(2, 5));
  EXPECT_THAT(Spectral(profile, 1, Part::kV), IsEmpty());
}

TEST(CompressedDims, OfEachHeadBecomeSpectral) {
  const auto profile = ImportCompressedDims(kSplit, kGeometry, kOptions);
  ASSERT_TRUE(profile.ok()) << profile.status();
  ExpectTheChannels(*profile);
  EXPECT_EQ(profile->name, "imported");
  EXPECT_EQ(profile->sequence->frequencies, 5);
  EXPECT_EQ(profile->heads[0].bands[0].coefficients, 10);
  EXPECT_EQ(profile->heads[0].bands[0].bits, 16);
  const auto again = CodecProfile::FromJson(profile->ToJson());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(*again, *profile);
}

TEST(CompressedDims, MayComeWithoutTheEndsOfHeads) {
  const auto profile = ImportCompressedDims(
      R"({"Layer_0": {"kc_list": [0, 1, 2, 3, 4, 5, 6, 7, 9, 15], "kn_list": [8, 10, 11, 12, 13, 14],
          "vc_list": [2, 5], "vn_list": [0, 1, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]}})",
      kGeometry, kOptions);
  ASSERT_TRUE(profile.ok()) << profile.status();
  ExpectTheChannels(*profile);
}

TEST(CompressedDims, MayComeInTheOlderFormInAnyOrder) {
  const auto profile = ImportCompressedDims(
      R"({"Layer_0": {"self_attn.k_proj": [15, 7, 6, 5, 4, 3, 2, 1, 0, 9],
          "self_attn.v_proj": [5, 2]}})",
      kGeometry, kOptions);
  ASSERT_TRUE(profile.ok()) << profile.status();
  ExpectTheChannels(*profile);
}

struct BadLists {
  const char* name;
  std::string text;
  const char* message;
};

class RefusedLists : public ::testing::TestWithParam<BadLists> {};

TEST_P(RefusedLists, NameThePlace) {
  const auto profile = ImportCompressedDims(GetParam().text, kGeometry, kOptions);
  EXPECT_EQ(profile.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(profile.status().message()), HasSubstr(GetParam().message));
}

const BadLists kBadLists[] = {
    {"NoJson", "kc_list", "is not a JSON object"},
    {"Empty", "", "is not a JSON object"},
    {"Array", "[1]", "is not a JSON object"},
    {"Deep", std::string(100000, '['), "nests deeper than 3 levels"},
    {"DeepList", Replaced(kSplit, "[2, 5]", "[[2], 5]"), "nests deeper than 3 levels"},
    {"Huge", std::string((size_t{16} << 20) + 1, ' '), "at most 16777216 are read"},
    {"NoLayer", "{}", "Layer_0 is missing; the model has 1 layers"},
    {"MoreLayers", Replaced(kSplit, "}}", "}, \"Layer_1\": {}}"), "lists 2 layers"},
    {"LayerTwice", Replaced(kSplit, "}}", "}, \"Layer_0\": {}}"), "'Layer_0' twice"},
    {"LayerIsAList", R"({"Layer_0": []})", "Layer_0 is not an object"},
    {"MissingList", Replaced(kSplit, "\"vn_list\"", "\"vm_list\""), "vn_list is missing"},
    {"UnknownList", Replaced(kSplit, "\"vn_list\"", "\"x\": [], \"vn_list\""),
     "'x' is an unknown list"},
    {"SomeEnds", Replaced(kSplit, "\"vn_h_list\": [6, 14]", "\"x\": []"), "vn_h_list is missing"},
    {"NotAList", Replaced(kSplit, "[2, 5]", "5"), "Layer_0.vc_list is not an array"},
    {"Negative", Replaced(kSplit, "[2, 5]", "[2, -5]"), "vc_list[1] is -5; it must be"},
    {"Fraction", Replaced(kSplit, "[2, 5]", "[2, 5.5]"), "vc_list[1] is 5.5; it must be"},
    {"Text", Replaced(kSplit, "[2, 5]", "[2, \"5\"]"), "vc_list[1] is \\\"5\\\"; it must be"},
    {"OutOfRange", Replaced(kSplit, "[2, 5]", "[2, 16]"), "an integer from 0 to 15"},
    {"Enormous", Replaced(kSplit, "[2, 5]", "[2, 18446744073709551615]"), "from 0 to 15"},
    {"Twice", Replaced(kSplit, "[2, 5]", "[2, 2]"), "vc_list[1]: channel 2 is listed twice"},
    {"InBothLists", Replaced(kSplit, "[2, 5]", "[2, 6]"), "vn_list[4]: channel 6 is listed twice"},
    {"InNeither", Replaced(Replaced(kSplit, "[2, 5]", "[2]"), "[2, 2]", "[1, 1]"),
     "channel 5 is neither in vc_list nor in vn_list"},
    {"TooMany", Replaced(kSplit, "[2, 5]", "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,0]"),
     "vc_list has 17 entries; at most 16 fit"},
    {"EndsShrink", Replaced(kSplit, "[6, 14]", "[6, 5]"), "vn_h_list[1] is 5, below"},
    {"EndsTooFew", Replaced(kSplit, "[6, 14]", "[14]"), "vn_h_list has 1 entries; there are 2"},
    {"EndsTooEarly", Replaced(kSplit, "[6, 14]", "[6, 13]"),
     "vn_h_list ends at 13; vn_list has 14"},
    {"EndsTooLate", Replaced(kSplit, "[6, 14]", "[6, 15]"), "vn_h_list[1] is 15; it must be"},
    {"OtherHead", Replaced(kSplit, "[6, 14]", "[7, 14]"), "vn_list[6]: channel 8 is not of head 0"},
};

INSTANTIATE_TEST_SUITE_P(Wrong, RefusedLists, ::testing::ValuesIn(kBadLists),
                         [](const auto& info) { return info.param.name; });

TEST(CompressedDims, NeedAGeometryAndANameThatAreValid) {
  EXPECT_EQ(ImportCompressedDims(kSplit, {}, kOptions).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ImportCompressedDims(kSplit, kGeometry, {}).status().message()),
              HasSubstr("name must be"));
}

}  // namespace
}  // namespace fourierkv
