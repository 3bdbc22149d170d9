#include "kv_service/core/part_assembly.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace fourierkv {
namespace {

PartAssembly Assembly(const std::shared_ptr<MemoryBudget>& budget, int64_t begin, int64_t size) {
  return PartAssembly(*BlobBuffer::Allocate(*budget, begin + size), begin);
}

std::vector<std::byte> Bytes(int64_t n) { return std::vector<std::byte>(n, std::byte{7}); }

class PartAssemblyTest : public testing::Test {
 protected:
  std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create("cache", 1 << 20);
};

TEST_F(PartAssemblyTest, ChunksInAnyOrderGiveTheBytes) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 rng(seed);
  for (int round = 0; round < 50; ++round) {
    const int64_t size = 1 + rng() % 3000;
    const int64_t begin = rng() % 100;
    std::vector<std::byte> source(size);
    for (std::byte& b : source) b = static_cast<std::byte>(rng());
    std::vector<std::pair<int64_t, int64_t>> chunks;
    for (int64_t at = 0; at < size;) {
      const int64_t n = std::min<int64_t>(size - at, 1 + rng() % 400);
      chunks.emplace_back(at, n);
      at += n;
    }
    std::shuffle(chunks.begin(), chunks.end(), rng);
    PartAssembly part = Assembly(budget_, begin, size);
    for (const auto& [at, n] : chunks) {
      EXPECT_FALSE(part.complete());
      const auto chunk = std::span(source).subspan(at, n);
      ASSERT_TRUE(part.Write(at, chunk).ok());
      EXPECT_EQ(part.Write(at, chunk).code(), absl::StatusCode::kAlreadyExists);
    }
    ASSERT_TRUE(part.complete());
    const auto got = part.buffer()->bytes().subspan(begin);
    EXPECT_TRUE(std::equal(got.begin(), got.end(), source.begin(), source.end()));
  }
}

TEST_F(PartAssemblyTest, AnyOverlapIsRefusedAndWritesNothing) {
  PartAssembly part = Assembly(budget_, 0, 100);
  ASSERT_TRUE(part.Write(20, Bytes(20)).ok());
  ASSERT_TRUE(part.Write(60, Bytes(20)).ok());
  const std::pair<int64_t, int64_t> overlaps[] = {{20, 20}, {19, 2}, {39, 1}, {25, 5},
                                                  {10, 80}, {59, 2}, {0, 100}};
  for (const auto& [at, n] : overlaps) {
    EXPECT_EQ(part.Write(at, Bytes(n)).code(), absl::StatusCode::kAlreadyExists) << at;
  }
  EXPECT_EQ(part.written(), 40);
  EXPECT_TRUE(part.Write(40, Bytes(20)).ok());
  EXPECT_TRUE(part.Write(0, Bytes(20)).ok());
  EXPECT_TRUE(part.Write(80, Bytes(20)).ok());
  EXPECT_TRUE(part.complete());
}

TEST_F(PartAssemblyTest, NothingIsWrittenBeyondTheEnd) {
  PartAssembly part = Assembly(budget_, 8, 100);
  EXPECT_EQ(part.Write(0, Bytes(101)).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(part.Write(100, Bytes(1)).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(part.Write(INT64_MAX, Bytes(1)).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(part.written(), 0);
}

TEST_F(PartAssemblyTest, ScatteredBytesAreBounded) {
  PartAssembly part = Assembly(budget_, 0, 8192);
  for (int64_t i = 0; i < kMaxRangesPerPart; ++i) ASSERT_TRUE(part.Write(2 * i, Bytes(1)).ok());
  EXPECT_EQ(part.Write(8000, Bytes(1)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(part.Write(1, Bytes(1)).ok());  // closes a gap
  EXPECT_TRUE(part.Write(8000, Bytes(1)).ok());
}

}  // namespace
}  // namespace fourierkv
