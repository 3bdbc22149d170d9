#include "compute/base/lru_map.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>

#include "compute/base/unique_id.h"

namespace fourierkv {
namespace {

TEST(LruMap, FindsWhatWasAdded) {
  LruMap<int, std::string> map;
  EXPECT_EQ(map.Find(1), nullptr);
  EXPECT_EQ(*map.Add(1, "one", 10), "one");
  EXPECT_EQ(*map.Find(1), "one");
  EXPECT_EQ(map.bytes(), 10);
  map.Add(1, "uno", 3);
  EXPECT_EQ(*map.Find(1), "uno");
  EXPECT_EQ(map.bytes(), 3);
  map.Grow(1, 4);
  EXPECT_EQ(map.bytes(), 7);
  map.Remove(1);
  map.Remove(1);
  EXPECT_EQ(map.Find(1), nullptr);
  EXPECT_EQ(map.bytes(), 0);
}

TEST(LruMap, ForgetsWhatWasUsedLongestAgo) {
  LruMap<int, std::unique_ptr<int>> map;  // values need not be copied
  for (int key = 0; key < 4; ++key) {
    map.BeginRound();
    map.Add(key, std::make_unique<int>(key), 100);
  }
  map.BeginRound();
  map.Find(0);
  map.BeginRound();
  map.Trim(250);
  EXPECT_NE(map.Find(0), nullptr);
  EXPECT_EQ(map.Find(1), nullptr);
  EXPECT_EQ(map.Find(2), nullptr);
  EXPECT_NE(map.Find(3), nullptr);
  EXPECT_EQ(map.bytes(), 200);
}

TEST(LruMap, NeverForgetsWhatThisRoundUses) {
  LruMap<int, int> map;
  map.Add(1, 1, 100);
  map.BeginRound();
  map.Add(2, 2, 100);
  const int* const two = map.Find(2);
  map.Trim(0);
  EXPECT_EQ(map.Find(1), nullptr);
  EXPECT_EQ(map.Find(2), two);
  EXPECT_EQ(map.bytes(), 100);
  map.BeginRound();
  map.Trim(0);
  EXPECT_EQ(map.bytes(), 0);
}

TEST(UniqueId, IsNeverZeroNorTheSameTwice) {
  std::set<uint64_t> ids;
  for (int i = 0; i < 1000; ++i) ids.insert(NextUniqueId());
  EXPECT_EQ(ids.size(), 1000u);
  EXPECT_EQ(ids.count(0), 0u);
}

}  // namespace
}  // namespace fourierkv
