#include "kv_service/core/memory_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "kv_service/core/blob_buffer.h"

namespace fourierkv {
namespace {

using ::testing::HasSubstr;

TEST(MemoryBudgetTest, ReservationsAddUpAndComeBack) {
  const auto budget = MemoryBudget::Create("cache", 100);
  {
    auto a = budget->TryReserve(60);
    auto b = budget->TryReserve(40);
    ASSERT_TRUE(a.ok() && b.ok());
    EXPECT_EQ(budget->used(), 100);
    b->Release();
    EXPECT_EQ(b->bytes(), 0);
    EXPECT_EQ(budget->used(), 60);
    b->Release();
    EXPECT_EQ(budget->used(), 60);
  }
  EXPECT_EQ(budget->used(), 0);
  EXPECT_EQ(budget->peak(), 100);
}

TEST(MemoryBudgetTest, MovingAReservationKeepsItsBytes) {
  const auto budget = MemoryBudget::Create("cache", 100);
  auto a = *budget->TryReserve(30);
  MemoryReservation b = std::move(a);
  EXPECT_EQ(budget->used(), 30);
  MemoryReservation c = *budget->TryReserve(20);
  c = std::move(b);
  EXPECT_EQ(budget->used(), 30);
  EXPECT_EQ(c.bytes(), 30);
}

TEST(MemoryBudgetTest, RefusalNamesTheBudgetWhatIsUsedAndWhatWasAsked) {
  const auto budget = MemoryBudget::Create("scratch memory", 100);
  const auto held = *budget->TryReserve(70);
  const auto refused = budget->TryReserve(31);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  for (const char* text : {"scratch memory", "31", "70", "100"}) {
    EXPECT_THAT(refused.status().ToString(), HasSubstr(text));
  }
  EXPECT_EQ(budget->refusals(), 1);
  EXPECT_EQ(budget->used(), 70);
}

TEST(MemoryBudgetTest, NegativeAndHugeSizesAreRefused) {
  const auto budget = MemoryBudget::Create("cache", 100);
  EXPECT_EQ(budget->TryReserve(-1).status().code(), absl::StatusCode::kInvalidArgument);
  const auto held = *budget->TryReserve(1);
  EXPECT_EQ(budget->TryReserve(INT64_MAX).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(budget->TryReserve(0).ok());
}

TEST(MemoryBudgetTest, AsksTheReclaimerForWhatIsMissingUntilItHasNoMore) {
  const auto budget = MemoryBudget::Create("cache", 100);
  std::vector<MemoryReservation> held;
  for (int i = 0; i < 10; ++i) held.push_back(*budget->TryReserve(10));
  std::vector<int64_t> asked;
  budget->SetReclaimer([&](int64_t bytes) -> int64_t {
    asked.push_back(bytes);
    if (held.empty()) return 0;
    held.pop_back();  // less than was asked
    return 10;
  });
  auto a = budget->TryReserve(25);
  ASSERT_TRUE(a.ok());
  EXPECT_EQ(asked, (std::vector<int64_t>{25, 15, 5}));
  EXPECT_EQ(budget->used(), 95);
  EXPECT_FALSE(budget->TryReserve(80).ok());
  EXPECT_TRUE(held.empty());
}

TEST(MemoryBudgetTest, WhatCanNeverFitReclaimsNothing) {
  const auto budget = MemoryBudget::Create("cache", 100);
  int calls = 0;
  budget->SetReclaimer([&](int64_t) { return ++calls, int64_t{0}; });
  EXPECT_FALSE(budget->TryReserve(101).ok());
  EXPECT_EQ(calls, 0);
}

TEST(MemoryBudgetTest, NeverExceedsItsLimitUnderManyThreads) {
  const auto budget = MemoryBudget::Create("cache", 1000);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::vector<MemoryReservation> held;
      for (int i = 0; i < 2000; ++i) {
        auto r = budget->TryReserve(1 + (i * 7 + t) % 300);
        if (r.ok()) held.push_back(std::move(*r));
        if (held.size() > 3) held.erase(held.begin());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(budget->peak(), 1000);
  EXPECT_EQ(budget->used(), 0);
}

TEST(BlobBufferTest, IsAlignedChargedAndOutlivesItsOwnersHoldOnTheBudget) {
  auto budget = MemoryBudget::Create("cache", 10000);
  auto blob = BlobBuffer::Allocate(*budget, 1001);
  ASSERT_TRUE(blob.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>((*blob)->bytes().data()) % 64, 0);
  EXPECT_EQ((*blob)->size(), 1001);
  EXPECT_EQ(budget->used(), 1001 + kBufferOverheadBytes);
  EXPECT_FALSE(BlobBuffer::Allocate(*budget, 9000).ok());
  budget.reset();
  blob->reset();
}

}  // namespace
}  // namespace fourierkv
