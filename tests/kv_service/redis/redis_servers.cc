#include "tests/kv_service/redis/redis_servers.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <numeric>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "kv_service/redis/hash_slot.h"

namespace fourierkv {
namespace {

[[noreturn]] void Abort(const std::string& what) {
  std::fprintf(stderr, "redis_servers: %s\n", what.c_str());
  std::abort();
}

std::string FindProgram(const std::string& name) {
  const char* path = std::getenv("PATH");
  for (const absl::string_view folder : absl::StrSplit(path == nullptr ? "" : path, ':')) {
    std::string file = absl::StrCat(folder, "/", name);
    if (access(file.c_str(), X_OK) == 0) return file;
  }
  return "";
}

int FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in any{};
  any.sin_family = AF_INET;
  any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof any;
  if (bind(fd, reinterpret_cast<sockaddr*>(&any), size) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&any), &size) != 0) {
    Abort("no free port");
  }
  close(fd);
  return ntohs(any.sin_port);
}

RedisReply ErrorReply(const absl::Status& status) {
  RedisReply reply;
  reply.type = RedisReply::Type::kError;
  reply.text = status.ToString();
  return reply;
}

}  // namespace

bool RedisServerIsInstalled() { return !FindProgram("redis-server").empty(); }

bool Eventually(const std::function<bool()>& done) {
  for (const absl::Time end = absl::Now() + absl::Seconds(30); absl::Now() < end;) {
    if (done()) return true;
    absl::SleepFor(absl::Milliseconds(10));
  }
  return false;
}

RedisClientOptions TestClientOptions(std::vector<NodeAddress> nodes, bool cluster) {
  RedisClientOptions options;
  options.nodes = std::move(nodes);
  options.cluster = cluster;
  options.connection.connect_timeout = absl::Seconds(5);
  options.connection.stall_timeout = absl::Milliseconds(500);
  return options;
}

RedisServer::RedisServer(bool cluster, std::vector<std::string> arguments)
    : cluster_(cluster), arguments_(std::move(arguments)) {
  // A port that was free may be taken by another test before the server has it.
  for (int attempt = 0; attempt < 10; ++attempt) {
    address_ = {"127.0.0.1", FreePort()};
    bus_port_ = FreePort();
    Spawn();
    if (WaitUntilItAnswers()) return;
    Kill();
  }
  Abort("redis-server does not start");
}

RedisServer::~RedisServer() { Kill(); }

void RedisServer::Start() {
  Spawn();
  if (!WaitUntilItAnswers()) Abort("redis-server does not start again");
}

void RedisServer::Spawn() {
  const std::string program = FindProgram("redis-server");
  std::vector<std::string> words = {program,
                                    "--port",
                                    absl::StrCat(address_.port),
                                    "--bind",
                                    "127.0.0.1",
                                    "--save",
                                    "",
                                    "--appendonly",
                                    "no",
                                    "--dir",
                                    folder_.path(),
                                    "--logfile",
                                    "redis.log",
                                    "--enable-debug-command",
                                    "yes"};
  if (cluster_) {
    // Replicas take part only once their master has sent them something: soon.
    for (const char* word : {"--cluster-enabled", "yes", "--cluster-node-timeout", "1000",
                             "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay",
                             "0", "--repl-ping-replica-period", "1", "--cluster-port"}) {
      words.push_back(word);
    }
    words.push_back(absl::StrCat(bus_port_));
  }
  words.insert(words.end(), arguments_.begin(), arguments_.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_ = fork();
  if (pid_ < 0) Abort("no process");
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int null = open("/dev/null", O_RDWR);
    dup2(null, STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
}

bool RedisServer::WaitUntilItAnswers() {
  return Eventually([this] {
           if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
             pid_ = -1;
             return true;
           }
           // NOAUTH is an answer, too.
           const RedisReply reply = Do({"PING"});
           return !reply.IsError() || absl::StartsWith(reply.text, "NOAUTH");
         }) &&
         pid_ > 0;
}

void RedisServer::Signal(int number) const {
  if (pid_ > 0) kill(pid_, number);
}

void RedisServer::Kill() {
  if (pid_ <= 0) return;
  Signal(SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

RedisReply RedisServer::Do(std::vector<std::string> words, const std::string& password) const {
  RedisConnectionOptions options;
  if (!password.empty()) options.password = [password] { return password; };
  const absl::Time deadline = absl::Now() + absl::Seconds(5);
  auto connection = RedisConnection::Connect(address_, options, deadline);
  if (!connection.ok()) return ErrorReply(connection.status());
  const RedisCommand command = RedisCommand::Of(std::move(words));
  const RedisCommand* const commands[] = {&command};
  auto replies = (*connection)->Call(commands, deadline);
  return replies.ok() ? replies->front() : ErrorReply(replies.status());
}

RedisCluster::RedisCluster(int masters, int replicas, std::vector<std::string> arguments)
    : masters_(masters) {
  for (int i = 0; i < masters + replicas; ++i) {
    servers_.push_back(std::make_unique<RedisServer>(true, arguments));
  }
  for (int i = 0; i < size(); ++i) {
    server(i).Do({"CLUSTER", "SET-CONFIG-EPOCH", absl::StrCat(i + 1)});
    if (i < masters) {
      server(i).Do({"CLUSTER", "ADDSLOTSRANGE", absl::StrCat(kHashSlots * i / masters),
                    absl::StrCat(kHashSlots * (i + 1) / masters - 1)});
    }
    if (i > 0) {
      server(i).Do({"CLUSTER", "MEET", "127.0.0.1", absl::StrCat(server(0).address().port),
                    absl::StrCat(server(0).bus_port())});
    }
  }
  for (int i = masters; i < size(); ++i) {
    const std::string master = IdOf(i % masters);
    if (!Eventually([&] { return !server(i).Do({"CLUSTER", "REPLICATE", master}).IsError(); })) {
      Abort("a replica does not get to know its master");
    }
  }
  std::vector<int> all(servers_.size());
  std::iota(all.begin(), all.end(), 0);
  const auto all_known = [&] {
    for (const int i : all) {
      const RedisReply slots = server(i).Do({"CLUSTER", "SLOTS"});
      size_t known = 0;
      for (const RedisReply& range : slots.elements) known += range.elements.size() - 2;
      if (known != servers_.size()) return false;
    }
    return true;
  };
  if (!WaitUntilOk(all) || !Eventually(all_known)) Abort("the cluster does not form");
}

std::vector<NodeAddress> RedisCluster::addresses() const {
  std::vector<NodeAddress> addresses;
  for (const auto& server : servers_) addresses.push_back(server->address());
  return addresses;
}

int RedisCluster::OwnerOf(const std::string& key) const {
  const int slot = HashSlot(key);
  int owner = 0;
  while (slot >= kHashSlots * (owner + 1) / masters_) ++owner;
  return owner;
}

std::string RedisCluster::IdOf(int i) { return server(i).Do({"CLUSTER", "MYID"}).text; }

void RedisCluster::AssignSlot(int slot, int to) {
  const std::string id = IdOf(to);
  server(to).Do({"CLUSTER", "SETSLOT", absl::StrCat(slot), "NODE", id});
  for (int i = 0; i < size(); ++i) {
    if (i != to) server(i).Do({"CLUSTER", "SETSLOT", absl::StrCat(slot), "NODE", id});
  }
}

bool RedisCluster::WaitUntilOk(const std::vector<int>& of) {
  return Eventually([&] {
    for (const int i : of) {
      const RedisReply info = server(i).Do({"CLUSTER", "INFO"});
      if (!absl::StrContains(info.text, "cluster_state:ok")) return false;
    }
    return true;
  });
}

}  // namespace fourierkv
