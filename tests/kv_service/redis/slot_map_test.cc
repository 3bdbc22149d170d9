#include "kv_service/redis/slot_map.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "kv_service/redis/hash_slot.h"
#include "kv_service/redis/reply_parser.h"

namespace fourierkv {
namespace {

const NodeAddress kAsked{"10.0.0.9", 7000};

absl::StatusOr<SlotMap> Read(const std::string& wire) {
  ReplyParser parser(1 << 20);
  EXPECT_TRUE(parser.Feed(wire).ok());
  const auto reply = parser.Next();
  EXPECT_TRUE(reply.ok() && reply->has_value()) << wire;
  return SlotMap::FromReply(**reply, kAsked);
}

std::string Node(const std::string& host, int port) {
  return absl::StrCat("*2\r\n$", host.size(), "\r\n", host, "\r\n:", port, "\r\n");
}

TEST(SlotMapTest, EverySlotHasTheOwnerThatTheReplySays) {
  const auto map = Read(absl::StrCat("*2\r\n*4\r\n:0\r\n:100\r\n", Node("a", 1), Node("b", 2),
                                     "*3\r\n:200\r\n:16383\r\n", Node("", 3)));
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_EQ(*map->Owner(0), (NodeAddress{"a", 1}));
  EXPECT_EQ(*map->Owner(100), (NodeAddress{"a", 1}));
  EXPECT_EQ(map->Owner(101), nullptr);
  EXPECT_EQ(map->Owner(199), nullptr);
  EXPECT_EQ(*map->Owner(16383), (NodeAddress{"10.0.0.9", 3})) << "no host: the one asked";
  EXPECT_THAT(map->nodes(), testing::UnorderedElementsAre(NodeAddress{"a", 1}, NodeAddress{"b", 2},
                                                          NodeAddress{"10.0.0.9", 3}));
}

TEST(SlotMapTest, AMovedSlotHasItsNewOwnerAndTheOthersKeepTheirs) {
  SlotMap map = SlotMap::Single(kAsked);
  map.SetOwner(5, {"b", 2});
  EXPECT_EQ(*map.Owner(5), (NodeAddress{"b", 2}));
  EXPECT_EQ(*map.Owner(6), kAsked);
  EXPECT_TRUE(map.Names({"b", 2}));
  SlotMap empty;
  EXPECT_EQ(empty.Owner(5), nullptr);
  empty.SetOwner(5, kAsked);
  EXPECT_EQ(*empty.Owner(5), kAsked);
  EXPECT_EQ(empty.Owner(4), nullptr);
}

TEST(SlotMapTest, MalformedRepliesAreErrors) {
  for (const std::string& wire :
       {std::string(":1\r\n"), std::string("*1\r\n:1\r\n"), std::string("*1\r\n*2\r\n:0\r\n:1\r\n"),
        absl::StrCat("*1\r\n*3\r\n:0\r\n:16384\r\n", Node("a", 1)),
        absl::StrCat("*1\r\n*3\r\n:-1\r\n:1\r\n", Node("a", 1)),
        absl::StrCat("*1\r\n*3\r\n:2\r\n:1\r\n", Node("a", 1)),
        absl::StrCat("*1\r\n*3\r\n$1\r\n0\r\n:1\r\n", Node("a", 1)),
        absl::StrCat("*1\r\n*3\r\n:0\r\n:1\r\n", Node("a", 0)),
        absl::StrCat("*1\r\n*3\r\n:0\r\n:1\r\n", Node("a", 65536)),
        absl::StrCat("*1\r\n*3\r\n:0\r\n:1\r\n", Node(std::string(300, 'a'), 1)),
        std::string("*1\r\n*3\r\n:0\r\n:1\r\n*1\r\n$1\r\na\r\n"),
        std::string("*1\r\n*3\r\n:0\r\n:1\r\n:1\r\n")}) {
    EXPECT_EQ(Read(wire).status().code(), absl::StatusCode::kInternal) << wire;
  }
  std::string many = absl::StrCat("*", kMaxClusterNodes + 1, "\r\n");
  for (size_t i = 0; i <= kMaxClusterNodes; ++i) {
    absl::StrAppend(&many, "*3\r\n:", i, "\r\n:", i, "\r\n", Node("a", static_cast<int>(i) + 1));
  }
  EXPECT_EQ(Read(many).status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace fourierkv
