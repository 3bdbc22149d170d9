#include "compute/codec/archive_profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <random>
#include <string>

#include "tests/compute/codec/random_archive.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

TEST(ArchiveProfile, SurvivesBothJsonForms) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  for (int round = 0; round < 10; ++round) {
    const CodecProfile profile = RandomArchivingProfile(rng);
    ASSERT_TRUE(profile.Validate().ok()) << profile.Validate();
    for (const std::string& text : {profile.ToJson(), profile.ToPrettyJson()}) {
      const auto read = CodecProfile::FromJson(text);
      ASSERT_TRUE(read.ok()) << read.status();
      EXPECT_EQ(*read, profile);
      EXPECT_EQ(read->Id(), profile.Id());
    }
  }
}

TEST(ArchiveProfile, TakesPartInTheProfilesId) {
  std::mt19937_64 rng(1);
  CodecProfile profile = RandomArchivingProfile(rng);
  const Digest with = profile.Id();
  profile.archive->heads[0].classes[3] ^= 1;
  EXPECT_NE(profile.Id(), with);
  profile.archive.reset();
  EXPECT_NE(profile.Id(), with);
}

TEST(ArchiveProfile, FaultsAreNamed) {
  struct Fault {
    std::function<void(ArchiveProfile&)> make;
    std::string message;
  };
  const float inf = std::numeric_limits<float>::infinity();
  const Fault faults[] = {
      {[](auto& a) { a.rounding = 0; }, "archive.rounding is 0"},
      {[](auto& a) { a.rounding = 129; }, "archive.rounding is 129"},
      {[](auto& a) { a.rope_frequencies.pop_back(); }, "archive.rope_frequencies has"},
      {[](auto& a) { a.rope_frequencies[0] = -1; }, "archive.rope_frequencies[0] is -1"},
      {[](auto& a) { a.rope_frequencies[1] = std::nan(""); }, "archive.rope_frequencies[1] is nan"},
      {[](auto& a) { a.probabilities.push_back(9999); }, "archive.probabilities has"},
      {[](auto& a) { a.probabilities[5] = 0; }, "archive.probabilities[5] is 0"},
      {[](auto& a) { a.heads.pop_back(); }, "archive.layers hold 7 heads"},
      {[](auto& a) { a.heads[0].rotation.assign(64, 0); }, "layers[0].k[0].rotation has"},
      {[](auto& a) { a.heads[1].mean.clear(); }, "archive.layers[0].v[0].mean has 0"},
      {[=](auto& a) { a.heads[3].mean[2] = FloatToBf16(inf); }, "layers[0].v[1].mean[2] is inf"},
      {[](auto& a) { a.heads[4].step[1] = 0; }, "archive.layers[1].k[0].step[1] is 0"},
      {[](auto& a) { a.heads[4].step[1] = FloatToBf16(-1); }, "step[1] is -1"},
      {[](auto& a) { a.heads[5].scale.assign(16, 0); }, "layers[1].v[0].scale[0] is 0"},
      {[](auto& a) { a.heads[5].scale.assign(3, 0x3f80); }, "layers[1].v[0].scale has 3"},
      {[](auto& a) { a.heads[6].classes.pop_back(); }, "layers[1].k[1].classes has 111"},
      {[](auto& a) { a.heads[7].classes[9] = 32; }, "layers[1].v[1].classes[9] is 32"},
  };
  std::mt19937_64 rng(2);
  CodecProfile profile = UniformProfile({.layers = 2, .kv_heads = 2, .head_dim = 16}, 0, 0, 1, 4);
  const ArchiveProfile archive = RandomArchive(rng, profile.geometry);
  for (const Fault& fault : faults) {
    profile.archive = archive;
    fault.make(*profile.archive);
    const absl::Status status = profile.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << fault.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(fault.message));
  }
}

// `text` with the first `from` replaced.
std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(ArchiveProfile, BadJsonIsRefusedWithItsPlace) {
  std::mt19937_64 rng(2);
  CodecProfile profile = UniformProfile({.layers = 2, .kv_heads = 2, .head_dim = 16}, 0, 0, 1, 4);
  profile.archive = RandomArchive(rng, profile.geometry);
  const std::string text = profile.ToJson();
  const struct {
    std::string from, to, message;
  } faults[] = {
      {"\"classes\":\"", "\"classes\":\"!", "archive.layers[0].k[0].classes: "},
      {"\"mean\":\"", "\"mean\":\"AAAA", "archive.layers[0].k[0].mean"},
      {"\"step\":\"", "\"stop\":\"", "archive.layers[0].k[0].stop: is an unknown key"},
      {"\"rounding\":", "\"roundings\":", "archive.roundings: is an unknown key"},
      {"\"rounding\":", "\"rounding\":1000", "archive.rounding: "},
      {"],\"v\":[{\"classes\"", "],\"w\":[{\"classes\"", "archive.layers[0].w: is an unknown key"},
  };
  for (const auto& fault : faults) {
    const auto read = CodecProfile::FromJson(Replaced(text, fault.from, fault.to));
    EXPECT_EQ(read.status().code(), absl::StatusCode::kInvalidArgument) << fault.message;
    EXPECT_THAT(std::string(read.status().message()), HasSubstr(fault.message));
  }
}

TEST(ArchiveProfile, DamagedTextIsRefusedOrValid) {
  const uint64_t seed = std::random_device()();
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 rng(seed);
  CodecProfile profile = UniformProfile({.layers = 1, .kv_heads = 1, .head_dim = 8}, 0, 0, 1, 4);
  profile.archive = RandomArchive(rng, profile.geometry);
  const std::string text = profile.ToJson();
  for (int round = 0; round < 300; ++round) {
    std::string damaged = text;
    damaged[RandomInt(rng, 0, static_cast<int>(text.size()) - 1)] ^=
        static_cast<char>(1 << RandomInt(rng, 0, 6));
    const auto read = CodecProfile::FromJson(damaged);
    if (read.ok()) {
      EXPECT_TRUE(read->Validate().ok());
    }
  }
  for (size_t size = 0; size < text.size(); size += 1 + text.size() / 200) {
    EXPECT_FALSE(CodecProfile::FromJson(text.substr(0, size)).ok());
  }
}

}  // namespace
}  // namespace fourierkv
