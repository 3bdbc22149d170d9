#include "compute/cache/kv_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "compute/cache/compact_kv_cache.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

TEST(KvBudgetTest, PlacesNeededAreEnoughAtEveryMoment) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int round = 0; round < 200; ++round) {
    const int segment = 128 << random() % 3;
    const int64_t window = static_cast<int64_t>(random() % 1500);
    const int64_t max_tokens = 1 + static_cast<int64_t>(random() % 20000);
    const int64_t chunk = std::max<int64_t>(512, segment);
    const KvPlaces places = PlacesNeeded(true, false, max_tokens, window, segment, chunk);
    int64_t length = 0;
    while (length < max_tokens) {
      const int64_t compact = CompactKvCache::CompactSegments(length, segment, window);
      length = std::min(length + 1 + static_cast<int64_t>(random() % chunk), max_tokens);
      ASSERT_LE(length - compact * segment, places.blocks * segment) << "before it is encoded";
      ASSERT_LE(CompactKvCache::CompactSegments(length, segment, window), places.slots);
    }
    EXPECT_LE(places.blocks * segment, max_tokens + segment - 1) << "more than it can ever have";
  }
}

TEST(KvBudgetTest, WhatMayStayExactNeedsBlocks) {
  const KvPlaces exact = PlacesNeeded(false, false, 1000, 256, 256, 512);
  EXPECT_EQ(exact.blocks, 4);
  EXPECT_EQ(exact.slots, 0);
  const KvPlaces bounded = PlacesNeeded(true, true, 10000, 256, 256, 512);
  EXPECT_EQ(bounded.blocks, 40);
  EXPECT_EQ(bounded.slots, CompactKvCache::CompactSegments(10000, 256, 256));
}

TEST(KvBudgetTest, ClaimsAreGivenBack) {
  KvBudget budget({.blocks = 10, .slots = 4});
  auto first = budget.Take({.blocks = 6, .slots = 0});
  ASSERT_TRUE(first.ok());
  EXPECT_EQ((*first)->places().blocks, 6);
  ASSERT_TRUE(budget.Take({.blocks = 4, .slots = 4}).ok());  // and gone again
  const auto full = budget.Take({.blocks = 5, .slots = 0}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(full));
  EXPECT_THAT(std::string(full.message()), HasSubstr("try again later"));
  const auto never = budget.Take({.blocks = 1, .slots = 5}).status();
  EXPECT_TRUE(absl::IsResourceExhausted(never));
  EXPECT_THAT(std::string(never.message()), HasSubstr("--kv-memory"));
  first->reset();
  EXPECT_TRUE(budget.Take({.blocks = 10, .slots = 4}).ok());
}

}  // namespace
}  // namespace fourierkv
