#include "kv_service/redis/hash_slot.h"

#include <gtest/gtest.h>

#include <string>

namespace fourierkv {
namespace {

TEST(HashSlotTest, IsTheCrcOfTheSpecification) {
  EXPECT_EQ(HashSlot("123456789"), 0x31c3);
  EXPECT_EQ(HashSlot(""), 0);
  EXPECT_EQ(HashSlot("foo"), 12182);
}

TEST(HashSlotTest, OnlyTheTagCounts) {
  EXPECT_EQ(HashSlot("{user1000}.following"), HashSlot("user1000"));
  EXPECT_EQ(HashSlot("a{user1000}.followers"), HashSlot("user1000"));
  EXPECT_EQ(HashSlot("foo{{bar}}zap"), HashSlot("{bar"));
  EXPECT_EQ(HashSlot("foo{bar}{zap}"), HashSlot("bar"));
  // No tag: nothing inside, or not closed.
  EXPECT_NE(HashSlot("foo{}{bar}"), HashSlot("bar"));
  EXPECT_NE(HashSlot("foo{bar"), HashSlot("bar"));
  EXPECT_NE(HashSlot("foo}bar{"), HashSlot("foo"));
}

}  // namespace
}  // namespace fourierkv
