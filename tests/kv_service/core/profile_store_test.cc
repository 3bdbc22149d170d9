#include "kv_service/core/profile_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "compute/codec/sequence_layout.h"
#include "core_fixtures.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;

CodecProfile Profile(const std::string& name) {
  CodecProfile profile = UniformProfile(kSmall, 0.5, 0.25, 8, 4);
  profile.name = name;
  return profile;
}

TEST(ProfileStoreTest, KeepsAProfileUnderTheHashOfItsContent) {
  ProfileStore store;
  const auto put = store.Put(Profile("a").ToJson());
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_EQ((*put)->id(), Profile("a").Id());
  const auto got = store.Get(Profile("a").Id());
  ASSERT_TRUE(got.ok());
  EXPECT_EQ((*got)->profile(), Profile("a"));
}

TEST(ProfileStoreTest, PuttingAgainChangesNothing) {
  ProfileStore store(1);
  const auto first = store.Put(Profile("a"));
  const auto pretty = store.Put(Profile("a").ToPrettyJson());
  ASSERT_TRUE(first.ok() && pretty.ok()) << pretty.status();
  EXPECT_EQ(*first, *pretty);
  EXPECT_EQ(store.List().size(), 1);
}

TEST(ProfileStoreTest, HoldsProfilesOfWholeSequences) {
  const CodecProfile profile = SmallSequenceProfile();
  ProfileStore store;
  const auto layout = store.Put(profile.ToJson());
  ASSERT_TRUE(layout.ok()) << layout.status();
  ASSERT_NE((*layout)->sequence(), nullptr);
  EXPECT_EQ((*layout)->sequence()->profile(), profile);
  EXPECT_EQ(*store.Get(profile.Id()), *layout);
  // Half of the values in 16 bits; of the longest sequence the states are next to nothing.
  EXPECT_NEAR((*layout)->BitsPerElement(), 8, 0.01);
}

TEST(ProfileStoreTest, RefusesWhatIsNoProfile) {
  ProfileStore store;
  for (const char* text : {"", "{", "[]", "{\"name\":\"x\"}", "\xff"}) {
    EXPECT_EQ(store.Put(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  CodecProfile invalid = Profile("a");
  invalid.segment_tokens = 100;
  EXPECT_EQ(store.Put(invalid).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(store.List().empty());
}

TEST(ProfileStoreTest, IsBoundedInCountAndBytes) {
  ProfileStore two(2);
  EXPECT_TRUE(two.Put(Profile("a")).ok());
  EXPECT_TRUE(two.Put(Profile("b")).ok());
  EXPECT_EQ(two.Put(Profile("c")).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(two.Put(Profile("a")).ok());
  ProfileStore small(10, static_cast<int64_t>(Profile("a").ToJson().size()) + 10);
  EXPECT_TRUE(small.Put(Profile("a")).ok());
  EXPECT_EQ(small.Put(Profile("b")).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(ProfileStoreTest, ASourceIsAskedForWhatIsNotHere) {
  ProfileStore store;
  int asked = 0;
  const Digest known = Profile("a").Id();
  store.SetSource([&](const Digest& id) -> absl::StatusOr<std::shared_ptr<const ProfileLayout>> {
    ++asked;
    if (id == known) return store.Put(Profile("a"));
    return id.IsZero() ? absl::UnavailableError("down") : absl::NotFoundError("not there, either");
  });
  for (int i = 0; i < 2; ++i) {
    const auto layout = store.Get(known);
    ASSERT_TRUE(layout.ok()) << layout.status();
    EXPECT_EQ((*layout)->id(), known);
  }
  EXPECT_EQ(asked, 1) << "now it is here";
  EXPECT_EQ(store.Get(Digest{}).status().code(), absl::StatusCode::kUnavailable);
  const auto missing = store.Get(Profile("b").Id());
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_NE(missing.status().message().find("put it first"), absl::string_view::npos);
  store.SetSource(nullptr);
  EXPECT_EQ(store.Get(Digest{}).status().code(), absl::StatusCode::kNotFound);
}

TEST(ProfileStoreTest, AnUnknownIdIsNamed) {
  const auto missing = ProfileStore().Get(Digest{});
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.status().ToString(), HasSubstr(Digest{}.ToHex()));
}

TEST(ProfileStoreTest, ListsByName) {
  ProfileStore store;
  for (const char* name : {"b", "c", "a"}) ASSERT_TRUE(store.Put(Profile(name)).ok());
  std::string names;
  for (const auto& layout : store.List()) names += layout->profile().name;
  EXPECT_EQ(names, "abc");
}

}  // namespace
}  // namespace fourierkv
