// Whatever happens to the files of a disk tier, it gives back the bytes that it was given, or none.

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "disk_fixture.h"

#ifndef FOURIERKV_DAMAGE_ROUNDS
#define FOURIERKV_DAMAGE_ROUNDS 12
#endif

namespace fourierkv {
namespace {

namespace fs = std::filesystem;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

class DiskDamageTest : public testing::TestWithParam<bool> {
 protected:
  // Some segments in tables and blob files, and some in the log only.
  void SetUp() override {
    if (GetParam()) disk_.options().keys = {DiskKey(std::string(kDiskKeyBytes, 'k'))};
    ASSERT_TRUE(disk_.Reopen().ok());
    flushed_ = disk_.Chain(rng_, 3, 100);
    ASSERT_TRUE(disk_.tier().Store(flushed_, absl::InfiniteFuture()).ok());
    ASSERT_TRUE(disk_.Reopen().ok());
    logged_ = disk_.Chain(rng_, 3);
    ASSERT_TRUE(disk_.tier().Store(logged_, absl::InfiniteFuture()).ok());
    disk_.Close();
    fs::copy(disk_.path(), saved_.path() + "/whole", fs::copy_options::recursive);
  }

  // Files that matter, in the directory as it is.
  std::vector<std::string> Files() {
    std::vector<std::string> files;
    for (const std::string& file : disk_.directory().Files()) {
      const std::string name = fs::path(file).filename();
      if (fs::file_size(file) > 0 && name.rfind("LOG", 0) != 0) files.push_back(file);
    }
    return files;
  }

  void Restore() {
    disk_.Close();
    for (const auto& entry : fs::directory_iterator(disk_.path())) fs::remove_all(entry.path());
    fs::copy(saved_.path() + "/whole", disk_.path(), fs::copy_options::recursive);
  }

  // Opens what is there; true if it could be.
  bool CheckNothingWrongIsServed() {
    if (!disk_.Reopen().ok()) return false;
    int held = 0;
    EXPECT_TRUE(disk_.HoldsNothingElse(flushed_, &held));
    EXPECT_TRUE(disk_.HoldsNothingElse(logged_, &held));
    // And it goes on: what was lost can be stored again. RocksDB refuses where it saw the damage.
    if (disk_.tier().Store(flushed_, absl::InfiniteFuture()).ok()) {
      EXPECT_TRUE(disk_.HoldsNothingElse(flushed_, &held));
    }
    return true;
  }

  const unsigned seed_ = std::random_device()();
  std::mt19937 rng_{seed_};
  DiskFixture disk_;
  TemporaryDirectory saved_;
  std::vector<StoredSegment> flushed_;
  std::vector<StoredSegment> logged_;
};

TEST_P(DiskDamageTest, FlippedBitsAreNeverServed) {
  SCOPED_TRACE(seed_);
  for (int round = 0; round < FOURIERKV_DAMAGE_ROUNDS; ++round) {
    const auto files = Files();
    const std::string& file = files[rng_() % files.size()];
    std::string bytes = ReadFile(file);
    const size_t at = rng_() % bytes.size();
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << rng_() % 8));
    WriteFile(file, bytes);
    SCOPED_TRACE(file + " byte " + std::to_string(at));
    CheckNothingWrongIsServed();
    if (HasFailure()) return;
    Restore();
  }
}

TEST_P(DiskDamageTest, TruncatedFilesAreNeverServed) {
  SCOPED_TRACE(seed_);
  for (int round = 0; round < FOURIERKV_DAMAGE_ROUNDS; ++round) {
    const auto files = Files();
    const std::string& file = files[rng_() % files.size()];
    const size_t size = rng_() % fs::file_size(file);
    fs::resize_file(file, size);
    SCOPED_TRACE(file + " cut to " + std::to_string(size));
    CheckNothingWrongIsServed();
    if (HasFailure()) return;
    Restore();
  }
}

TEST_P(DiskDamageTest, ADamagedRecordIsDroppedCountedAndCanBeStoredAgain) {
  // All of every blob file but what RocksDB reads when it opens: payload alone is hit.
  int hit = 0;
  for (const std::string& file : Files()) {
    if (fs::path(file).extension() != ".blob") continue;
    std::string bytes = ReadFile(file);
    for (size_t at = 4000; at + 4000 < bytes.size(); at += 4001) bytes[at] ^= 0x40;
    WriteFile(file, bytes);
    ++hit;
  }
  ASSERT_GT(hit, 0);
  ASSERT_TRUE(disk_.Reopen().ok());
  EXPECT_EQ(disk_.LoadForm(flushed_[1], SegmentForm::kExact).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(disk_.tier().Stats().damaged_records, 1);
  EXPECT_EQ(disk_.LoadForm(flushed_[1], SegmentForm::kExact).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_TRUE(disk_.Holds(flushed_[1]));  // as the place between its neighbours
  EXPECT_TRUE(disk_.HoldsAll(logged_));
  ASSERT_TRUE(disk_.tier().Store(std::span(flushed_).subspan(1, 1), absl::InfiniteFuture()).ok());
  EXPECT_TRUE(disk_.LoadForm(flushed_[1], SegmentForm::kExact).ok());
  // A leaf goes altogether.
  int held = 0;
  EXPECT_TRUE(disk_.HoldsNothingElse(std::span(flushed_).last(1), &held));
  EXPECT_EQ(held, 0);
  EXPECT_FALSE(disk_.Holds(flushed_.back()));
}

INSTANTIATE_TEST_SUITE_P(Files, DiskDamageTest, testing::Bool(), [](const auto& encrypted) {
  return encrypted.param ? "Encrypted" : "Plain";
});

}  // namespace
}  // namespace fourierkv
