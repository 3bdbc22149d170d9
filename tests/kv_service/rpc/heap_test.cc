// How much memory a program takes for a budget of it, when blobs of all sizes come and go for long.

#include "kv_service/rpc/heap.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kv_service/core/blob_buffer.h"

namespace fourierkv {
namespace {

constexpr int64_t kBudget = int64_t{192} << 20;
constexpr int kThreads = 6;
constexpr int kBlobs = 1500;     // of a thread: the budget is filled about nine times
constexpr int kTableBlocks = 8;  // of 1 MiB: what a disk tier gathers and then lets go of at once

int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0;
  int64_t resident = 0;
  file >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

// Exact, lossless and compact blobs, and those of small models.
int64_t BlobBytes(std::mt19937& rng) {
  switch (rng() % 4) {
    case 0:
      return (512 << 10) + 64;
    case 1:
      return (256 << 10) + rng() % (128 << 10);
    case 2:
      return (16 << 10) + rng() % (48 << 10);
    default:
      return (4 << 10) + 64;
  }
}

// Blobs of which any one goes when the budget has no room for the next.
class Blobs {
 public:
  void Add(std::mt19937& rng) {
    const int64_t bytes = BlobBytes(rng);
    auto blob = BlobBuffer::Allocate(*budget_, bytes);
    while (!blob.ok()) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        ASSERT_FALSE(held_.empty()) << blob.status();
        std::swap(held_[rng() % held_.size()], held_.back());
        held_.pop_back();
      }
      blob = BlobBuffer::Allocate(*budget_, bytes);
    }
    std::ranges::fill((*blob)->bytes(), std::byte{1});
    std::lock_guard<std::mutex> lock(mutex_);
    held_.push_back(*std::move(blob));
  }

 private:
  const std::shared_ptr<MemoryBudget> budget_ = MemoryBudget::Create("blobs", kBudget);
  std::mutex mutex_;  // guards what follows
  std::vector<BlobPtr> held_;
};

void Churn(Blobs& blobs, unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<std::vector<char>> table;
  for (int i = 0; i < kBlobs; ++i) {
    blobs.Add(rng);
    if (i % 4 == 0) table.emplace_back(1 << 20, '\1');
    if (table.size() == kTableBlocks) table.clear();
  }
}

TEST(HeapTest, TakesATenthMoreThanTheBudgetHoweverLongBlobsOfAllSizesComeAndGo) {
  if (HeapName() == "system") GTEST_SKIP() << "sanitizers keep what was freed";
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  const int64_t before = ResidentBytes();
  Blobs blobs;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(Churn, std::ref(blobs), seed + i);
  for (std::thread& thread : threads) thread.join();
  // By itself, soon: nobody asks for it.
  constexpr int64_t kMost = kBudget + kBudget / 10;
  for (int i = 0; i < 1000 && ResidentBytes() - before > kMost; ++i) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_LE(ResidentBytes() - before, kMost);
}

TEST(HeapTest, CountsWhatIsAllocated) {
  constexpr size_t kBytes = size_t{64} << 20;
  constexpr int64_t kLeast = kBytes / 10 * 9;  // threads have caches, which count as allocated
  const HeapStats before = ReadHeap();
  auto block = std::make_unique<std::vector<char>>(kBytes, '\1');
  const HeapStats with = ReadHeap();
  if (with.allocated_bytes == 0) GTEST_SKIP() << "this sanitizer does not count";
  EXPECT_GE(with.allocated_bytes, before.allocated_bytes + kLeast);
  EXPECT_GE(with.held_bytes, with.allocated_bytes);
  block.reset();
  EXPECT_LE(ReadHeap().allocated_bytes, with.allocated_bytes - kLeast);
  ReleaseFreeHeap();
  EXPECT_LE(ReadHeap().held_bytes, with.held_bytes - kLeast);
}

}  // namespace
}  // namespace fourierkv
