// The client and one real server.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/kv_service/redis/redis_servers.h"

namespace fourierkv {
namespace {

using absl::StatusCode;

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

std::unique_ptr<RedisClient> Client(const RedisServer& server, const std::string& password = "",
                                    const std::string& user = "") {
  RedisClientOptions options = TestClientOptions({server.address()}, false);
  if (!password.empty()) options.connection.password = [password] { return password; };
  options.connection.username = user;
  auto client = RedisClient::Create(options);
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

TEST(RedisServerTest, ValuesGoThereAndComeBackWhateverTheirPieces) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  const RedisServer server;
  const auto client = Client(server);
  std::string all;
  std::vector<std::string> pieces;
  for (size_t size : {size_t{0}, size_t{1}, size_t{65'537}, size_t{3} << 20}) {
    pieces.emplace_back(size, static_cast<char>('a' + pieces.size()));
    pieces.back() += std::string("\r\n\0$", 4);
    all += pieces.back();
  }
  RedisCommand set = RedisCommand::Of({"PSETEX", "key", "60000"});
  for (const std::string& piece : pieces) set.value.push_back(std::as_bytes(std::span(piece)));
  const std::vector<RedisCommand> commands = {
      set, RedisCommand::Of({"GET", "key"}), RedisCommand::Of({"GET", "none"}),
      RedisCommand::Of({"EXISTS", "key"}), RedisCommand::Of({"LPUSH", "key", "x"})};
  const auto replies = client->Run(commands, Soon());
  EXPECT_EQ(replies[0]->text, "OK");
  EXPECT_TRUE(replies[1]->text == all);
  EXPECT_EQ(replies[2]->type, RedisReply::Type::kNil);
  EXPECT_EQ(replies[3]->integer, 1);
  EXPECT_EQ(replies[4].status().code(), StatusCode::kFailedPrecondition);
}

TEST(RedisServerTest, PasswordsAndUsersAreUsed) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  const RedisServer server(
      false, {"--requirepass", "right", "--user", "cache", "on", ">word", "~ok:*", "+get", "+set"});
  const RedisCommand get = RedisCommand::Of({"GET", "ok:1"});
  EXPECT_TRUE(Client(server, "right")->RunOne(get, Soon()).ok());
  EXPECT_TRUE(Client(server, "word", "cache")->RunOne(get, Soon()).ok());
  EXPECT_EQ(Client(server)->RunOne(get, Soon()).status().code(), StatusCode::kUnauthenticated);
  const auto wrong = Client(server, "s3cret-wrong")->RunOne(get, Soon());
  EXPECT_EQ(wrong.status().code(), StatusCode::kUnauthenticated);
  EXPECT_EQ(wrong.status().message().find("s3cret"), absl::string_view::npos);
  const auto denied =
      Client(server, "word", "cache")->RunOne(RedisCommand::Of({"GET", "x"}), Soon());
  EXPECT_EQ(denied.status().code(), StatusCode::kPermissionDenied);
}

TEST(RedisServerTest, AServerThatWasRestartedIsFoundAgain) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  RedisServer server;
  const auto client = Client(server);
  const RedisCommand set = RedisCommand::Of({"SET", "a", "1"});
  ASSERT_TRUE(client->RunOne(set, Soon()).ok());
  server.Kill();
  server.Start();
  EXPECT_TRUE(client->RunOne(set, Soon()).ok()) << "the kept connection is known to be closed";
  server.Kill();
  EXPECT_EQ(client->RunOne(set, Soon()).status().code(), StatusCode::kUnavailable);
  server.Start();
  EXPECT_TRUE(Eventually([&] { return client->RunOne(set, Soon()).ok(); }));
}

TEST(RedisServerTest, AStoppedServerHoldsNobodyPastTheDeadline) {
  FOURIERKV_NEEDS_REDIS_SERVER();
  const RedisServer server;
  const auto client = Client(server);
  const std::string large(8 << 20, 'x');
  RedisCommand set = RedisCommand::Of({"PSETEX", "a", "60000"});
  set.value = {std::as_bytes(std::span(large))};
  ASSERT_TRUE(client->RunOne(set, Soon()).ok());
  server.Signal(SIGSTOP);
  // One while sending, one while connecting anew: the kernel still takes connections for it.
  for (int i = 0; i < 2; ++i) {
    const auto late = client->RunOne(set, absl::Now() + absl::Milliseconds(100));
    EXPECT_EQ(late.status().code(), StatusCode::kDeadlineExceeded) << late.status();
  }
  const auto stalled = client->RunOne(set, absl::InfiniteFuture());
  EXPECT_EQ(stalled.status().code(), StatusCode::kUnavailable);
  server.Signal(SIGCONT);
  EXPECT_TRUE(Eventually([&] { return client->RunOne(set, Soon()).ok(); }));
}

}  // namespace
}  // namespace fourierkv
