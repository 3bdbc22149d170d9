// How the client treats nodes that move, stall, lie and break: fake nodes say what real ones seldom
// do.

#include "kv_service/redis/redis_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kv_service/redis/hash_slot.h"
#include "tests/kv_service/redis/fake_node.h"
#include "tests/kv_service/redis/redis_servers.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using Words = FakeNode::Words;

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }
absl::Time VerySoon() { return absl::Now() + absl::Milliseconds(200); }

std::unique_ptr<RedisClient> Client(const std::vector<NodeAddress>& nodes, bool cluster = true) {
  auto client = RedisClient::Create(TestClientOptions(nodes, cluster));
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

RedisCommand Get(const std::string& key) { return RedisCommand::Of({"GET", key}); }

// A node that owns all slots and answers other commands by `answer`.
std::unique_ptr<FakeNode> Owner(FakeNode::Answer answer) {
  auto self = std::make_shared<std::atomic<FakeNode*>>(nullptr);
  auto node = std::make_unique<FakeNode>([=](const Words& words) {
    while (*self == nullptr) std::this_thread::yield();
    return words[0] == "CLUSTER" ? AllSlotsAt((*self).load()->address()) : answer(words);
  });
  *self = node.get();
  return node;
}

TEST(RedisClientTest, OptionsAreChecked) {
  RedisClientOptions options;
  EXPECT_EQ(RedisClient::Create(options).status().code(), StatusCode::kInvalidArgument);
  options.cluster = false;
  options.nodes = {{"a", 1}, {"b", 1}};
  EXPECT_EQ(RedisClient::Create(options).status().code(), StatusCode::kInvalidArgument);
  options.nodes = {{"a", 1}};
  options.connection.username = "user";
  EXPECT_EQ(RedisClient::Create(options).status().code(), StatusCode::kInvalidArgument);
  options.connection.username = "";
  options.connection.stall_timeout = absl::ZeroDuration();
  EXPECT_EQ(RedisClient::Create(options).status().code(), StatusCode::kInvalidArgument);
}

TEST(RedisClientTest, FollowsAMovedSlotAndRemembersIt) {
  FakeNode target([](const Words& words) { return Bulk(words[1]); });
  const std::string key = "k";
  const auto moved =
      absl::StrCat("-MOVED ", HashSlot(key), " ", target.address().ToString(), "\r\n");
  const auto source = Owner([&](const Words&) { return moved; });
  const auto client = Client({source->address()});
  const auto reply = client->RunOne(Get(key), Soon());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->text, "k");
  EXPECT_EQ(client->metrics().moved, 1);
  EXPECT_THAT(target.commands(), Contains(Words{"GET", "k"}));
}

TEST(RedisClientTest, AsksWhereAMigratingKeyIsAndStillBelievesTheOwner) {
  FakeNode target([](const Words& words) {
    return words[0] == "ASKING" ? std::string("+OK\r\n") : Bulk("there");
  });
  const auto ask = absl::StrCat("-ASK ", HashSlot("k"), " ", target.address().ToString(), "\r\n");
  const auto source = Owner([&](const Words&) { return ask; });
  const auto client = Client({source->address()});
  for (int i = 0; i < 2; ++i) {
    const auto reply = client->RunOne(Get("k"), Soon());
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->text, "there");
  }
  EXPECT_EQ(client->metrics().asked, 2);
  EXPECT_THAT(target.commands(),
              ElementsAre(Words{"ASKING"}, Words{"GET", "k"}, Words{"ASKING"}, Words{"GET", "k"}));
}

TEST(RedisClientTest, WhatGoesWithACommandFollowsItsRedirection) {
  FakeNode target([](const Words& words) { return words[0] == "WAIT" ? ":1\r\n" : "+OK\r\n"; });
  const auto moved =
      absl::StrCat("-MOVED ", HashSlot("k"), " ", target.address().ToString(), "\r\n");
  const auto source =
      Owner([&](const Words& words) { return words[0] == "WAIT" ? ":7\r\n" : moved; });
  const auto client = Client({source->address()});
  std::vector<RedisCommand> commands = {RedisCommand::Of({"SET", "k", "v"}),
                                        RedisCommand::Of({"WAIT", "1", "10"})};
  commands[1].with_previous = true;
  const auto replies = client->Run(commands, Soon());
  ASSERT_TRUE(replies[1].ok()) << replies[1].status();
  EXPECT_EQ(replies[1]->integer, 1);
  EXPECT_THAT(target.commands(), ElementsAre(Words{"SET", "k", "v"}, Words{"WAIT", "1", "10"}));
}

TEST(RedisClientTest, NodesThatSendEachOtherTheSlotDoNotHoldARequest) {
  std::atomic<int> other_port{0};
  const auto to_other = [&](const Words&) {
    return absl::StrCat("-MOVED ", HashSlot("k"), " 127.0.0.1:", other_port.load(), "\r\n");
  };
  const auto a = Owner(to_other);
  FakeNode b([&](const Words&) {
    return absl::StrCat("-MOVED ", HashSlot("k"), " ", a->address().ToString(), "\r\n");
  });
  other_port = b.address().port;
  const auto client = Client({a->address()});
  const auto reply = client->RunOne(Get("k"), Soon());
  EXPECT_EQ(reply.status().code(), StatusCode::kUnavailable) << reply.status();
}

TEST(RedisClientTest, CommandsGoToTheOwnersOfTheirKeysAndResultsComeInTheirOrder) {
  FakeNode high([](const Words& words) { return Bulk("high " + words[1]); });
  std::atomic<int> port{0};
  FakeNode low([&](const Words& words) {
    if (words[0] != "CLUSTER") return Bulk("low " + words[1]);
    const std::string host = Bulk("127.0.0.1");
    return absl::StrCat("*2\r\n*3\r\n:0\r\n:8191\r\n*2\r\n", host, ":", port.load(),
                        "\r\n*3\r\n:8192\r\n:16383\r\n*2\r\n", host, ":", high.address().port,
                        "\r\n");
  });
  port = low.address().port;
  const auto client = Client({low.address()});
  std::vector<RedisCommand> commands;
  for (int i = 0; i < 50; ++i) commands.push_back(Get(absl::StrCat("key", i)));
  const auto replies = client->Run(commands, Soon());
  for (int i = 0; i < 50; ++i) {
    const std::string key = absl::StrCat("key", i);
    ASSERT_TRUE(replies[i].ok()) << replies[i].status();
    EXPECT_EQ(replies[i]->text, (HashSlot(key) < 8192 ? "low " : "high ") + key);
  }
  EXPECT_EQ(low.connections() + high.connections(), 3) << "one more asked for the slots";
}

TEST(RedisClientTest, ErrorRepliesAreStatusesOfTheirCommandsOnly) {
  const auto node = Owner([](const Words& words) {
    return words[1] == "bad" ? std::string("-OOM command not allowed\r\n") : Bulk(words[1]);
  });
  const auto client = Client({node->address()});
  const std::vector<RedisCommand> commands = {Get("a"), Get("bad"), Get("c")};
  const auto replies = client->Run(commands, Soon());
  EXPECT_EQ(replies[0]->text, "a");
  EXPECT_EQ(replies[1].status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(replies[2]->text, "c");
}

TEST(RedisClientTest, HostileRepliesAreErrors) {
  for (const std::string& bytes :
       {std::string("nonsense\r\n"), std::string("*2147483647\r\n*2147483647\r\n,"),
        std::string("+one\r\n+two\r\n"), std::string("$-5\r\n"),
        absl::StrCat("$", 20 << 20, "\r\n", std::string(20 << 20, 'x'))}) {
    SCOPED_TRACE(bytes.substr(0, 30));
    const auto node = Owner([&](const Words&) { return bytes; });
    const auto client = Client({node->address()});
    const auto reply = client->RunOne(Get("k"), Soon());
    EXPECT_EQ(reply.status().code(), StatusCode::kInternal) << reply.status();
  }
}

TEST(RedisClientTest, ANodeWithoutAnswerEndsADeadlineOrIsFoundStalled) {
  const auto node = Owner([](const Words& words) {
    return words[1] == "half" ? std::string("$100\r\nabc") : std::string();
  });
  const auto client = Client({node->address()});
  EXPECT_EQ(client->RunOne(Get("k"), VerySoon()).status().code(), StatusCode::kDeadlineExceeded);
  const auto stalled = client->RunOne(Get("half"), Soon());
  EXPECT_EQ(stalled.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(stalled.status().message()), HasSubstr("neither took nor gave"));
  // It is left alone now.
  const auto gets = [&] {
    const std::vector<Words> all = node->commands();
    return std::count_if(all.begin(), all.end(), [](const Words& w) { return w[0] == "GET"; });
  };
  const auto before = gets();
  EXPECT_EQ(client->RunOne(Get("k"), Soon()).status().code(), StatusCode::kUnavailable);
  EXPECT_EQ(client->metrics().refusals, 1);
  EXPECT_EQ(gets(), before);
}

TEST(RedisClientTest, SilenceBeforeShortDeadlinesIsTheNodesFaultAfterThreeTimes) {
  std::atomic<bool> silent{true};
  FakeNode node([&](const Words&) { return silent ? std::string() : std::string("+OK\r\n"); });
  const auto client = Client({node.address()}, false);
  const auto shortly = [] { return absl::Now() + absl::Milliseconds(30); };
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(client->RunOne(Get("k"), shortly()).status().code(), StatusCode::kDeadlineExceeded);
  }
  EXPECT_EQ(client->RunOne(Get("k"), Soon()).status().code(), StatusCode::kUnavailable);
  silent = false;
  EXPECT_TRUE(Eventually([&] { return client->RunOne(Get("k"), Soon()).ok(); }));
}

TEST(RedisClientTest, AConnectionThatWasClosedMeanwhileIsReplaced) {
  std::atomic<int> calls{0};
  FakeNode node([&](const Words&) {
    return ++calls % 3 == 0 ? std::string(FakeNode::kHangUp) : std::string("+OK\r\n");
  });
  const auto client = Client({node.address()}, false);
  for (int i = 0; i < 10; ++i) {
    const auto reply = client->RunOne(Get("k"), Soon());
    EXPECT_TRUE(reply.ok()) << reply.status();
  }
  EXPECT_GT(node.connections(), 1);
}

TEST(RedisClientTest, NobodyThereIsUnavailableAtOnce) {
  NodeAddress gone;
  {
    const FakeNode node([](const Words&) { return ""; });
    gone = node.address();
  }
  for (const bool cluster : {true, false}) {
    const auto client = Client({gone}, cluster);
    for (int i = 0; i < 3; ++i) {
      const auto reply = client->RunOne(Get("k"), absl::InfiniteFuture());
      EXPECT_EQ(reply.status().code(), StatusCode::kUnavailable) << reply.status();
    }
  }
}

TEST(RedisClientTest, ANodeOfAClusterIsNoSingleServer) {
  FakeNode node([](const Words&) { return "-MOVED 1 127.0.0.1:1\r\n"; });
  const auto reply = Client({node.address()}, false)->RunOne(Get("k"), Soon());
  EXPECT_EQ(reply.status().code(), StatusCode::kFailedPrecondition);
}

TEST(RedisClientTest, ASingleServerIsNoCluster) {
  FakeNode node([](const Words&) { return "-ERR This instance has cluster support disabled\r\n"; });
  const auto reply = Client({node.address()})->RunOne(Get("k"), Soon());
  EXPECT_FALSE(reply.ok());
  EXPECT_THAT(std::string(reply.status().message()), HasSubstr("cluster support disabled"));
}

TEST(RedisClientTest, ManyThreadsShareAFewConnections) {
  const auto node = Owner([](const Words& words) { return Bulk(words[1]); });
  RedisClientOptions options = TestClientOptions({node->address()}, true);
  options.connections_per_node = 3;
  const auto client = RedisClient::Create(options);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const std::string key = absl::StrCat(t, "/", i);
        const auto reply = (*client)->RunOne(Get(key), Soon());
        if (!reply.ok() || reply->text != key) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(node->connections(), 4);
}

}  // namespace
}  // namespace fourierkv
