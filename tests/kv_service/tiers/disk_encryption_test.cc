// What is on disk is unreadable without its key, and what was changed there is missing.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "disk_fixture.h"
#include "kv_service/core/segment_record.h"
#include "kv_service/tiers/value_cipher.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;
using testing::Not;

DiskKey Key(char c) { return DiskKey(std::string(kDiskKeyBytes, c)); }

class ValueCipherTest : public testing::Test {
 protected:
  std::string Random(size_t bytes) {
    std::string text(bytes, '\0');
    for (char& c : text) c = static_cast<char>(rng_());
    return text;
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 rng_{seed_};
  const ValueCipher cipher_{{Key('a')}};
};

TEST_F(ValueCipherTest, OpensWhatItSealed) {
  for (const size_t bytes : {0, 1, 15, 16, 17, 4095, 1 << 20}) {
    const std::string value = Random(bytes);
    const auto sealed = cipher_.Seal("name", value);
    ASSERT_TRUE(sealed.ok()) << sealed.status();
    EXPECT_EQ(sealed->size(), bytes + ValueCipher::kHeaderBytes + ValueCipher::kTagBytes);
    const auto opened = cipher_.Open("name", *sealed);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(*opened, value);
    const auto again = cipher_.Seal("name", value);
    EXPECT_NE(*again, *sealed) << "equal values do not look equal";
  }
}

TEST_F(ValueCipherTest, PiecesAreOneValue) {
  const std::string value = Random(1000);
  const auto bytes = std::as_bytes(std::span(value.data(), value.size()));
  const std::vector<std::span<const std::byte>> pieces = {
      bytes.first(1), bytes.subspan(1, 0), bytes.subspan(1, 600), bytes.subspan(601)};
  const auto sealed = cipher_.Seal("name", std::span(pieces));
  ASSERT_TRUE(sealed.ok());
  EXPECT_EQ(*cipher_.Open("name", *sealed), value);
}

TEST_F(ValueCipherTest, EveryChangedBitAndEveryTruncationIsFound) {
  const std::string sealed = *cipher_.Seal("name", Random(40));
  for (size_t bit = 0; bit < sealed.size() * 8; ++bit) {
    std::string changed = sealed;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(cipher_.Open("name", changed).ok()) << "bit " << bit;
  }
  for (size_t bytes = 0; bytes < sealed.size(); ++bytes) {
    EXPECT_FALSE(cipher_.Open("name", sealed.substr(0, bytes)).ok()) << bytes << " bytes";
  }
  EXPECT_FALSE(cipher_.Open("name", sealed + '\0').ok());
}

TEST_F(ValueCipherTest, IsBoundToItsName) {
  const std::string sealed = *cipher_.Seal("name", "value");
  EXPECT_EQ(cipher_.Open("nama", sealed).status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(cipher_.Open("", sealed).status().code(), StatusCode::kDataLoss);
}

TEST_F(ValueCipherTest, KeysRotate) {
  const std::string old = *cipher_.Seal("name", "value");
  const ValueCipher rotated({Key('b'), Key('a')});
  EXPECT_EQ(*rotated.Open("name", old), "value");
  const std::string fresh = *rotated.Seal("name", "value");
  const absl::Status unknown = cipher_.Open("name", fresh).status();
  EXPECT_EQ(unknown.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(unknown.message()), HasSubstr(DiskKeyName(Key('b').id())));
  EXPECT_EQ(*ValueCipher({Key('b')}).Open("name", fresh), "value");
}

TEST(DiskKeysTest, AreReadInHexAndBase64) {
  const std::string raw(kDiskKeyBytes, 'a');
  const auto keys =
      ParseDiskKeys("# the new one\n  " + absl::BytesToHexString(raw) + "  # since May\n\n" +
                    absl::Base64Escape(std::string(kDiskKeyBytes, '\xff')) + "\r\n");
  ASSERT_TRUE(keys.ok()) << keys.status();
  ASSERT_EQ(keys->size(), 2);
  EXPECT_EQ((*keys)[0].id(), Key('a').id());
  EXPECT_EQ((*keys)[1].id(), Key('\xff').id());
  EXPECT_EQ(DiskKeyName(Key('a').id()).size(), 16);
}

TEST(DiskKeysTest, WhatIsNoKeyIsRefusedByItsLineAndNotRepeated) {
  const std::string good(64, 'a');
  const std::string secret = "secret0";
  for (const std::string& text :
       {good + "\n" + secret, good + "\n" + std::string(63, 'a'),
        good + "\n" + std::string(65, 'a'), good + "\n" + std::string(64, 'g'),
        good + "\n" + std::string(44, '!'), good + "\n" + std::string(44, 'A'),
        good + "\n" + good + good, good + "\n" + good, good + "\n" + std::string("\0\xff", 2)}) {
    const auto keys = ParseDiskKeys(text);
    EXPECT_EQ(keys.status().code(), StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(keys.status().message()), HasSubstr("line 2"));
    EXPECT_THAT(std::string(keys.status().message()), Not(HasSubstr(secret)));
  }
  for (const std::string none : {"", "\n\n", "# nothing\n"}) {
    EXPECT_EQ(ParseDiskKeys(none).status().code(), StatusCode::kInvalidArgument);
  }
  std::string many;
  for (int i = 0; i <= kMostDiskKeys; ++i) {
    many += absl::BytesToHexString(std::string(kDiskKeyBytes, static_cast<char>(i))) + "\n";
  }
  EXPECT_EQ(ParseDiskKeys(many).status().code(), StatusCode::kInvalidArgument);
}

TEST(DiskKeysTest, FilesThatOthersCanAccessAreRefused) {
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/keys";
  std::ofstream(path) << std::string(64, 'a') << "\n";
  for (const mode_t mode : {0400, 0600, 0440, 0640}) {
    ASSERT_EQ(chmod(path.c_str(), mode), 0);
    EXPECT_TRUE(ReadDiskKeys("--disk-key-file", path).ok()) << std::oct << mode;
  }
  for (const mode_t mode : {0404, 0444, 0644, 0660, 0602, 0601}) {
    ASSERT_EQ(chmod(path.c_str(), mode), 0);
    const absl::Status refused = ReadDiskKeys("--disk-key-file", path).status();
    EXPECT_EQ(refused.code(), StatusCode::kPermissionDenied) << std::oct << mode;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("--disk-key-file"));
  }
  EXPECT_EQ(ReadDiskKeys("--disk-key-file", path + "2").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(ReadDiskKeys("--disk-key-file", directory.path()).status().code(),
            StatusCode::kInvalidArgument);
  ASSERT_EQ(chmod(path.c_str(), 0600), 0);
  std::ofstream(path) << std::string(100'000, '\n');
  EXPECT_EQ(ReadDiskKeys("--disk-key-file", path).status().code(), StatusCode::kInvalidArgument);
}

bool AnyFileHas(const TemporaryDirectory& directory, const std::string& bytes) {
  for (const std::string& path : directory.Files()) {
    std::ifstream file(path, std::ios::binary);
    const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (all.find(bytes) != std::string::npos) return true;
  }
  return false;
}

class DiskEncryptionTest : public testing::Test {
 protected:
  absl::Status Open(std::vector<DiskKey> keys) {
    f_.options().keys = std::move(keys);
    return f_.Reopen();
  }
  absl::Status Store(const std::vector<StoredSegment>& chain) {
    return f_.tier().Store(chain, absl::InfiniteFuture());
  }
  // Bytes from the middle of a blob.
  static std::string Payload(const StoredSegment& segment) {
    const auto blob = segment.forms[SegmentForm::kExact]->blob(0, Part::kK)->bytes();
    return {reinterpret_cast<const char*>(blob.data()) + blob.size() / 2, 64};
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 rng_{seed_};
  DiskFixture f_;
};

TEST_F(DiskEncryptionTest, NothingOfASegmentCanBeReadFromItsFiles) {
  const auto chain = f_.Chain(rng_, 3, 9);
  const std::string description = EncodeNamespace(chain[0].context->ns);
  for (const bool encrypted : {false, true}) {
    DiskFixture fresh;
    if (encrypted) fresh.options().keys = {Key('a')};
    ASSERT_TRUE(fresh.Reopen().ok());
    ASSERT_TRUE(fresh.tier().Store(chain, absl::InfiniteFuture()).ok());
    const auto on_disk = [&](const std::string& bytes) {
      return AnyFileHas(fresh.directory(), bytes);
    };
    // In the log, and in tables and blob files.
    for (int round = 0; round < 2; ++round) {
      EXPECT_NE(on_disk(Payload(chain[1])), encrypted);
      EXPECT_NE(on_disk(description), encrypted) << "and descriptions neither";
      ASSERT_TRUE(fresh.Reopen().ok());
      EXPECT_TRUE(fresh.HoldsAll(chain));
    }
  }
}

TEST_F(DiskEncryptionTest, AWrongKeyOpensNothingAndLosesNothing) {
  const auto chain = f_.Chain(rng_, 3);
  ASSERT_TRUE(Open({Key('a')}).ok());
  ASSERT_TRUE(Store(chain).ok());
  f_.Close();
  const absl::Status wrong = Open({Key('b')});
  EXPECT_EQ(wrong.code(), StatusCode::kFailedPrecondition) << wrong;
  EXPECT_THAT(std::string(wrong.message()), HasSubstr(DiskKeyName(Key('a').id())));
  EXPECT_THAT(std::string(wrong.message()), HasSubstr("--disk-key-file"));
  const absl::Status none = Open({});
  EXPECT_EQ(none.code(), StatusCode::kFailedPrecondition) << none;
  EXPECT_THAT(std::string(none.message()), HasSubstr("--disk-key-file"));
  ASSERT_TRUE(Open({Key('a')}).ok());
  EXPECT_TRUE(f_.HoldsAll(chain));
}

TEST_F(DiskEncryptionTest, ADirectoryIsEncryptedOrItIsNot) {
  ASSERT_TRUE(Open({}).ok());
  ASSERT_TRUE(Store(f_.Chain(rng_, 2)).ok());
  f_.Close();
  const absl::Status refused = Open({Key('a')});
  EXPECT_EQ(refused.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("not encrypted"));
}

TEST_F(DiskEncryptionTest, KeysRotateAndWhatAGoneKeySealedIsMissing) {
  const auto old = f_.Chain(rng_, 3);
  const auto fresh = f_.Chain(rng_, 2);
  ASSERT_TRUE(Open({Key('a')}).ok());
  ASSERT_TRUE(Store(old).ok());
  ASSERT_TRUE(Open({Key('b'), Key('a')}).ok());
  EXPECT_TRUE(f_.HoldsAll(old));
  ASSERT_TRUE(Store(fresh).ok());
  ASSERT_TRUE(Open({Key('b'), Key('a')}).ok());
  EXPECT_TRUE(f_.HoldsAll(old));
  EXPECT_TRUE(f_.HoldsAll(fresh));
  ASSERT_TRUE(Open({Key('b')}).ok());
  int held = 0;
  EXPECT_TRUE(f_.HoldsNothingElse(old, &held));
  EXPECT_EQ(held, 0);
  EXPECT_TRUE(f_.HoldsAll(fresh)) << "sealed with the new key";
  EXPECT_EQ(f_.tier().Stats().segments, 2);
  // It can be stored again.
  ASSERT_TRUE(Store(old).ok());
  ASSERT_TRUE(Open({Key('b')}).ok());
  EXPECT_TRUE(f_.HoldsAll(old));
}

}  // namespace
}  // namespace fourierkv
