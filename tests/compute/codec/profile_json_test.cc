// The JSON form of profiles: canonical text, round trips, and every way in which text can be wrong.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>

#include "absl/strings/str_replace.h"
#include "compute/codec/profile.h"
#include "compute/codec/rotation.h"
#include "tests/compute/codec/random_codec_input.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

// One layer, one head of 8 channels.
constexpr char kText[] = R"({"basis":"dct2","format":"fourierkv-profile/1",)"
                         R"("geometry":{"head_dim":8,"kv_heads":1,"layers":1},)"
                         R"("layers":[{"k":[[{"bits":8,"channels":[0,2],"coefficients":4},)"
                         R"({"bits":4,"channels":[1,3,4,5,6,7]}]],)"
                         R"("v":[[{"bits":16,"channels":[0,1,2,3,4,5,6,7]}]]}],)"
                         R"("name":"small","segment_tokens":256})";

CodecProfile Small() {
  CodecProfile profile;
  profile.name = "small";
  profile.geometry = {.layers = 1, .kv_heads = 1, .head_dim = 8};
  profile.heads.resize(2);
  profile.heads[0].bands = {{4, 8, {0, 2}}, {0, 4, {1, 3, 4, 5, 6, 7}}};
  profile.heads[1].bands = {{0, 16, {0, 1, 2, 3, 4, 5, 6, 7}}};
  return profile;
}

TEST(ProfileJson, CanonicalFormIsOneLineWithSortedKeys) {
  EXPECT_EQ(Small().ToJson(), kText);
  EXPECT_EQ(CodecProfile::FromJson(kText).value(), Small());
}

TEST(ProfileJson, IdIsTheHashOfTheCanonicalForm) {
  EXPECT_EQ(Small().Id(), Sha256().AddBytes(kText, sizeof kText - 1).Finish());
  CodecProfile other = Small();
  other.segment_tokens = 512;
  EXPECT_NE(other.Id(), Small().Id());
}

// The identity of 8 channels as the JSON form has it.
std::string Identity8() {
  std::vector<int16_t> identity(64);
  for (int d = 0; d < 8; ++d) identity[9 * d] = 32767;
  return RotationToBase64(identity);
}

// kText with K's head rotated by `rotation` and evidence.
std::string RotatedText(const std::string& rotation) {
  return absl::StrReplaceAll(
      kText, {{"\"k\":[[", "\"k\":[{\"bands\":["},
              {"[1,3,4,5,6,7]}]]", "[1,3,4,5,6,7]}],\"rotation\":\"" + rotation + "\"}]"},
              {"\"format\"", R"("evidence":{"a":"","b c":"x"},"format")"}});
}

TEST(ProfileJson, RotatedHeadsAreObjectsAndEvidenceIsPartOfTheText) {
  CodecProfile profile = Small();
  profile.heads[0].rotation.resize(64);
  for (int d = 0; d < 8; ++d) profile.heads[0].rotation[9 * d] = 32767;
  profile.evidence = {{"b c", "x"}, {"a", ""}};
  const std::string text = RotatedText(Identity8());
  EXPECT_EQ(profile.ToJson(), text);
  const absl::StatusOr<CodecProfile> read = CodecProfile::FromJson(text);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, profile);
  EXPECT_NE(profile.Id(), Small().Id());
}

TEST(ProfileJson, AnObjectWithoutRotationIsAnOrdinaryHead) {
  std::string text = RotatedText("");
  text = absl::StrReplaceAll(
      text, {{",\"rotation\":\"\"", ""}, {R"("evidence":{"a":"","b c":"x"})", "\"evidence\":{}"}});
  const absl::StatusOr<CodecProfile> read = CodecProfile::FromJson(text);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->ToJson(), kText);
}

TEST(ProfileJson, WrongRotationsAreRefusedNamingThePlace) {
  std::string skewed = Identity8();
  skewed[4] = '/';  // an entry far from 0
  const std::pair<std::string, const char*> wrong[] = {
      {"", "layers[0].k[0].rotation: is empty; leave it out"},
      {"AAA", "layers[0].k[0].rotation: base64 of 3 characters"},
      {"AA!=", "layers[0].k[0].rotation: character 2 is not base64"},
      {"AAAA", "layers[0].k[0].rotation: base64 ends within a 16-bit value"},
      {"AAB=", "layers[0].k[0].rotation: base64 ends with bits that belong to no byte"},
      {"AAA=", "layers[0].k[0].rotation has 1 entries; it must have head_dim^2 = 64"},
      {skewed, "layers[0].k[0].rotation is not orthogonal: columns"},
      {std::string(700000, 'A'), "layers[0].k[0].rotation: a string has more than 699052"},
  };
  for (const auto& [rotation, message] : wrong) {
    const absl::Status status = CodecProfile::FromJson(RotatedText(rotation)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

TEST(ProfileJson, WrongEvidenceIsRefused) {
  std::string many = "\"k0\":\"\"";
  for (int i = 1; i < 33; ++i) many += ",\"k" + std::to_string(i) + "\":\"\"";
  const std::pair<std::string, const char*> wrong[] = {
      {many, "evidence.k32: is one more than the 32 entries allowed"},
      {"\"a\":\"\",\"a\":\"\"", "evidence: key 'a' occurs twice"},
      {"\"a\":1", "evidence.a: expected a string"},
      {"\"a\":{}", "evidence.a: expected a string"},
      {"\"\":\"\"", "evidence: a key is empty"},
      {"\"" + std::string(65, 'k') + "\":\"\"", "evidence: a string has more than 64"},
      {"\"a\":\"" + std::string(257, 'v') + "\"", "evidence.a: a string has more than 256"},
      {"\"a\":\"\x01\"", "evidence.a: a string holds a character that is not printable"},
  };
  for (const auto& [evidence, message] : wrong) {
    const std::string text =
        absl::StrReplaceAll(kText, {{"\"format\"", "\"evidence\":{" + evidence + "},\"format\""}});
    const absl::Status status = CodecProfile::FromJson(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

TEST(ProfileJson, PrettyFormPutsEachHeadOnALine) {
  EXPECT_EQ(Small().ToPrettyJson(), R"({
  "basis": "dct2",
  "format": "fourierkv-profile/1",
  "geometry": {"head_dim": 8, "kv_heads": 1, "layers": 1},
  "layers": [
    {
      "k": [
        [{"bits": 8, "channels": [0, 2], "coefficients": 4}, {"bits": 4, "channels": [1, 3, 4, 5, 6, 7]}]
      ],
      "v": [
        [{"bits": 16, "channels": [0, 1, 2, 3, 4, 5, 6, 7]}]
      ]
    }
  ],
  "name": "small",
  "segment_tokens": 256
}
)");
}

TEST(ProfileJson, RandomProfilesSurviveBothForms) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (int i = 0; i < 50; ++i) {
    const CodecProfile profile = RandomProfile(rng);
    for (const std::string& text : {profile.ToJson(), profile.ToPrettyJson()}) {
      const absl::StatusOr<CodecProfile> read = CodecProfile::FromJson(text);
      ASSERT_TRUE(read.ok()) << read.status() << "\n" << text;
      ASSERT_EQ(*read, profile);
      ASSERT_EQ(read->ToJson(), profile.ToJson());
    }
  }
}

TEST(ProfileJson, OrderOfKeysAndEscapesDoNotMatter) {
  const std::string text = absl::StrReplaceAll(
      R"({"name":"sm\u0061ll","layers":LAYERS,"segment_tokens":256,"format":"fourierkv-profile\/1",
          "geometry":{"layers":1,"kv_heads":1,"head_dim":8},"basis":"dct2"})",
      {{"LAYERS", R"([{"v":[[{"channels":[0,1,2,3,4,5,6,7],"bits":16}]],
                       "k":[[{"coefficients":4,"channels":[0,2],"bits":8},
                             {"channels":[1,3,4,5,6,7],"bits":4}]]}])"}});
  const absl::StatusOr<CodecProfile> profile = CodecProfile::FromJson(text);
  ASSERT_TRUE(profile.ok()) << profile.status();
  EXPECT_EQ(profile->Id(), Small().Id());
}

struct Change {
  const char* name;
  std::string from, to;  // what is replaced in kText
  const char* message;
};

std::string Repeat(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

const Change kChanges[] = {
    {"NotAnObject", kText, "[]", "expected an object"},
    {"Empty", kText, "", "expected an object, but the text ends"},
    {"OnlySpace", kText, " \n", "the text ends"},
    {"TrailingBytes", "256}", "256}x", "expected the end of the text"},
    {"TrailingNul", "256}", std::string("256}\0", 5), "expected the end of the text"},
    {"ByteOrderMark", "{\"basis", "\xef\xbb\xbf{\"basis", "expected an object"},
    {"Comment", "{\"basis", "{/**/\"basis", "expected a key"},
    {"TrailingComma", "256}", "256,}", "expected a key"},
    {"UnknownKey", "\"name\"", "\"nmae\"", "nmae: is an unknown key"},
    {"UnknownGeometryKey", "kv_heads", "q_heads", "geometry.q_heads: is an unknown key"},
    {"UnknownBandKey", "coefficients", "modes", "layers[0].k[0][0].modes: is an unknown key"},
    {"DuplicateKey", "\"name\":\"small\"", "\"name\":\"small\",\"name\":\"s\"", "occurs twice"},
    {"DuplicateByEscape", "\"name\":\"small\"", R"("name":"small","n\u0061me":"s")",
     "occurs twice"},
    {"DuplicateBits", "\"bits\":8", "\"bits\":8,\"bits\":8",
     "layers[0].k[0][0]: key 'bits' occurs twice"},
    {"NoFormat", "\"format\":\"fourierkv-profile/1\",", "", "key 'format' is missing"},
    {"OtherFormat", "profile/1", "profile/2", "format: is 'fourierkv-profile/2'"},
    {"NoName", "\"name\":\"small\",", "", "key 'name' is missing"},
    {"NoSegmentTokens", ",\"segment_tokens\":256", "", "key 'segment_tokens' is missing"},
    {"NoBits", "\"bits\":8,", "", "layers[0].k[0][0]: key 'bits' is missing"},
    {"NoChannels", "\"channels\":[0,2],", "", "layers[0].k[0][0]: key 'channels' is missing"},
    {"NoKvHeads", "\"kv_heads\":1,", "", "geometry: key 'kv_heads' is missing"},
    {"UnknownBasis", "dct2", "dct9", "basis: basis 'dct9' is unknown"},
    {"NameIsANumber", "\"small\"", "5", "name: expected a string"},
    {"NameIsEmpty", "\"small\"", "\"\"", "name must be"},
    {"NameIsLong", "small", std::string(129, 'x'), "name: a string has more than 128"},
    {"NameIsNotUtf8", "small", "\xff\xfe", "name: a string holds a character"},
    {"NameHasAControl", "small", "\x01", "name: a string holds a character"},
    {"NameHasAnEscapedControl", "small", "\\u0000", "name: a string holds a character"},
    {"NameHasANewline", "small", "\\n", "name: a string holds an escape"},
    {"NameHasABadEscape", "small", "\\u00g1", "name: \\u must be followed"},
    {"NameDoesNotEnd", "\"small\",\"segment_tokens\":256}", "\"small", "name: the text ends"},
    {"TextEndsInEscape", "\"small\",\"segment_tokens\":256}", "\"\\u00", "name: \\u must"},
    {"LongKey", "\"name\"", "\"" + std::string(100, 'k') + "\"", "more than 64 characters"},
    {"EmptyKey", "\"name\"", "\"\"", "a key is empty"},
    {"LayersIsANumber", "\"layers\":1}", "\"layers\":1000000000}",
     "geometry.layers: is 1000000000; it must be an integer from 1 to 512"},
    {"LayersIsHuge", "\"layers\":1}", "\"layers\":" + std::string(1000, '9') + "}",
     "geometry.layers: is 999"},
    {"LayersIsNegative", "\"layers\":1}", "\"layers\":-1}", "geometry.layers: expected an integer"},
    {"LayersIsAFraction", "\"layers\":1}", "\"layers\":1.0}", "without fraction"},
    {"LayersHasAnExponent", "\"layers\":1}", "\"layers\":1e0}", "without fraction or exponent"},
    {"LayersStartsWithZero", "\"layers\":1}", "\"layers\":01}", "a number starts with 0"},
    {"LayersIsNull", "\"layers\":1}", "\"layers\":null}", "geometry.layers: expected an integer"},
    {"LayersIsText", "\"layers\":1}", "\"layers\":\"1\"}", "geometry.layers: expected an integer"},
    {"HeadDimTooLarge", "\"head_dim\":8", "\"head_dim\":1024", "geometry.head_dim: is 1024"},
    {"HeadDimOdd", "\"head_dim\":8", "\"head_dim\":12", "geometry.head_dim is 12"},
    {"SegmentTokens", "256", "200", "segment_tokens is 200"},
    {"TwoLayersWanted", "\"layers\":1}", "\"layers\":2}", "layers has 1 layers"},
    {"TwoHeadsWanted", "\"kv_heads\":1", "\"kv_heads\":2", "layers[0].k has 1 heads"},
    {"HeadIsABand", "\"k\":[[{", "\"k\":[{", "layers[0].k[0].bits: is an unknown key"},
    {"HeadIsANumber", "\"k\":[[{", "\"k\":[1,{", "layers[0].k[0]: expected an array, found '1'"},
    {"ChannelIsText", "[0,2]", "[0,\"2\"]",
     "layers[0].k[0][0].channels[1]: expected an integer from 0 to 511"},
    {"ChannelTooLarge", "[0,2]", "[0,512]", "layers[0].k[0][0].channels[1]: is 512"},
    {"ChannelOutOfHead", "[0,2]", "[0,8]", "layers[0].k[0][0]: channel 8 is not below"},
    {"ChannelIn2Bands", "[0,2]", "[0,1,2]", "layers[0].k[0]: channel 1 is in two bands"},
    {"TooManyChannels", "[0,2]", "[" + Repeat("0,", 512) + "0]", "more than the 512 elements"},
    {"NoBitsZero", "\"bits\":4", "\"bits\":0", "layers[0].k[0][1].bits: is 0"},
    {"BitsFive", "\"bits\":4", "\"bits\":5", "layers[0].k[0][1]: bits is 5"},
    {"ZeroCoefficients", "\"coefficients\":4", "\"coefficients\":0",
     "layers[0].k[0][0].coefficients: is 0; it must be an integer from 1 to 8192"},
    {"ThirteenBands", "\"k\":[[", "\"k\":[[" + Repeat(R"({"bits":4,"channels":[]},)", 12),
     "layers[0].k[0]: has more than the 12 elements"},
    {"EmptyHead", R"([[{"bits":16,"channels":[0,1,2,3,4,5,6,7]}]])", "[[]]",
     "layers[0].v[0]: channel 0 is in no band"},
    {"DeepArrays", "[0,2]", Repeat("[", 1000000), "channels[0]: expected an integer"},
    {"DeepObjects", "\"small\"", Repeat("{\"a\":", 1000000), "name: expected a string"},
    {"DeepUnderUnknownKey", "\"name\"", "\"x\":" + Repeat("[", 1000000), "x: is an unknown key"},
};

class ProfileText : public testing::TestWithParam<Change> {};

TEST_P(ProfileText, IsRefusedNamingThePlace) {
  std::string text = kText;
  const size_t at = text.find(GetParam().from);
  ASSERT_NE(at, std::string::npos);
  text.replace(at, GetParam().from.size(), GetParam().to);
  const absl::Status status = CodecProfile::FromJson(text).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
  EXPECT_LT(status.message().size(), 400u);
}

INSTANTIATE_TEST_SUITE_P(Wrong, ProfileText, testing::ValuesIn(kChanges),
                         [](const auto& info) { return info.param.name; });

TEST(ProfileJson, EveryTruncationIsRefused) {
  const std::string text = kText;
  for (size_t size = 0; size < text.size(); ++size) {
    const absl::Status status = CodecProfile::FromJson(text.substr(0, size)).status();
    ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << size;
  }
}

TEST(ProfileJson, DamagedTextNeverCrashesAndIsNeverMisread) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (int i = 0; i < 5000; ++i) {
    std::string text = kText;
    const int edits = RandomInt(rng, 1, 4);
    for (int e = 0; e < edits; ++e) {
      const size_t at = RandomInt(rng, 0, static_cast<int>(text.size()) - 1);
      switch (RandomInt(rng, 0, 2)) {
        case 0:
          text[at] = static_cast<char>(rng());
          break;
        case 1:
          text.erase(at, 1);
          break;
        default:
          text.insert(at, 1, "{}[],:\"\\0159"[RandomInt(rng, 0, 11)]);
      }
    }
    const absl::StatusOr<CodecProfile> profile = CodecProfile::FromJson(text);
    ASSERT_TRUE(!profile.ok() || profile->Validate().ok()) << text;
  }
}

TEST(ProfileJson, RefusesTextBeyondItsLimitUnread) {
  const absl::Status status = CodecProfile::FromJson(std::string((64 << 20) + 1, ' ')).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("larger than 67108864 bytes"));
}

TEST(ProfileFile, IsReadAndItsPathNamedInErrors) {
  const std::string path = testing::TempDir() + "/fourierkv_profile_test.json";
  std::ofstream(path) << Small().ToPrettyJson();
  EXPECT_EQ(CodecProfile::FromFile(path).value(), Small());
  std::ofstream(path) << "{}";
  const absl::Status status = CodecProfile::FromFile(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  std::filesystem::remove(path);
  EXPECT_EQ(CodecProfile::FromFile(path).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(CodecProfile::FromFile(testing::TempDir()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fourierkv
