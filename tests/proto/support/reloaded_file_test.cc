#include "proto/support/reloaded_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "absl/strings/numbers.h"
#include "tests/compute/model/temp_folder.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

absl::StatusOr<int> ParseNumber(absl::string_view text) {
  int number = 0;
  if (!absl::SimpleAtoi(text, &number)) return absl::InvalidArgumentError("is no number");
  return number;
}

// Looks until the value is `expected`; false if that takes too long.
bool Becomes(ReloadedFile<int>& file, int expected) {
  const absl::Time limit = absl::Now() + absl::Seconds(20);
  while (*file.Get() != expected) {
    if (absl::Now() > limit) return false;
    absl::SleepFor(absl::Milliseconds(20));
  }
  return true;
}

TEST(ReloadedFileTest, SaysWhatTheFileSaysNow) {
  const TempFolder folder;
  folder.Write("n", "1");
  const auto file = ReloadedFile<int>::Open("--n", folder.path() + "/n", ParseNumber);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*(*file)->Get(), 1);
  folder.Write("n", "2");
  EXPECT_TRUE(Becomes(**file, 2)) << "written in place";
  folder.Write("other", "3");
  std::filesystem::rename(folder.path() + "/other", folder.path() + "/n");
  EXPECT_TRUE(Becomes(**file, 3)) << "replaced";
}

TEST(ReloadedFileTest, ALinkThatIsTurnedIsAChange) {
  const TempFolder folder;
  folder.Write("a", "1");
  folder.Write("b", "2");
  std::filesystem::create_symlink("a", folder.path() + "/n");
  const auto file = ReloadedFile<int>::Open("--n", folder.path() + "/n", ParseNumber);
  ASSERT_TRUE(file.ok()) << file.status();
  std::filesystem::create_symlink("b", folder.path() + "/next");
  std::filesystem::rename(folder.path() + "/next", folder.path() + "/n");
  EXPECT_TRUE(Becomes(**file, 2));
}

TEST(ReloadedFileTest, WhatCannotBeReadChangesNothing) {
  const TempFolder folder;
  folder.Write("n", "1");
  const std::string path = folder.path() + "/n";
  const auto file = ReloadedFile<int>::Open("--n", path, ParseNumber);
  ASSERT_TRUE(file.ok()) << file.status();
  folder.Write("n", "x");
  absl::SleepFor(kReloadInterval);
  EXPECT_EQ(*(*file)->Get(), 1);
  std::filesystem::remove(path);
  absl::SleepFor(kReloadInterval);
  EXPECT_EQ(*(*file)->Get(), 1);
  folder.Write("n", "2");
  EXPECT_TRUE(Becomes(**file, 2)) << "right again";
}

TEST(ReloadedFileTest, AWrongFileIsRefusedAtTheStart) {
  const TempFolder folder;
  const std::string path = folder.path() + "/n";
  auto missing = ReloadedFile<int>::Open("--n", path, ParseNumber);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("--n: " + path));
  folder.Write("n", "x");
  auto wrong = ReloadedFile<int>::Open("--n", path, ParseNumber);
  EXPECT_EQ(wrong.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(wrong.status().message()), HasSubstr("is no number"));
  folder.Write("n", std::string(kMostReloadedBytes + 1, '1'));
  EXPECT_THAT(std::string(ReloadedFile<int>::Open("--n", path, ParseNumber).status().message()),
              HasSubstr("more than"));
}

}  // namespace
}  // namespace fourierkv
