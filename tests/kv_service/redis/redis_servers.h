// Real Redis servers, alone or as a cluster on loopback, that end with the test.

#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "kv_service/redis/node_address.h"
#include "kv_service/redis/redis_client.h"
#include "kv_service/redis/redis_reply.h"
#include "tests/compute/model/temp_folder.h"

namespace fourierkv {

bool RedisServerIsInstalled();

// At the start of every test that needs a server.
#define FOURIERKV_NEEDS_REDIS_SERVER()                                                     \
  if (!RedisServerIsInstalled()) {                                                         \
    GTEST_SKIP() << "NOT TESTED: redis-server is not installed; bootstrap.sh installs it"; \
  }

// Nothing is on disk but its cluster configuration.
class RedisServer {
 public:
  // Aborts the program if it cannot be started.
  explicit RedisServer(bool cluster = false, std::vector<std::string> arguments = {});
  ~RedisServer();
  RedisServer(const RedisServer&) = delete;
  RedisServer& operator=(const RedisServer&) = delete;

  const NodeAddress& address() const { return address_; }
  int bus_port() const { return bus_port_; }
  void Signal(int number) const;
  void Kill();   // as kill -9
  void Start();  // again, with the same address and arguments

  // The reply of this server, whatever it is; an error reply if it gives none. `password` if it
  // wants one.
  RedisReply Do(std::vector<std::string> words, const std::string& password = "") const;

 private:
  void Spawn();
  bool WaitUntilItAnswers();

  const bool cluster_;
  const std::vector<std::string> arguments_;
  TempFolder folder_;
  NodeAddress address_;
  int bus_port_ = 0;
  pid_t pid_ = -1;
};

// Masters share the slots evenly, in order; replica i is of master i % masters. Aborts the program
// if the servers do not agree on that within half a minute.
class RedisCluster {
 public:
  RedisCluster(int masters, int replicas, std::vector<std::string> arguments = {});

  int size() const { return static_cast<int>(servers_.size()); }
  RedisServer& server(int i) { return *servers_[static_cast<size_t>(i)]; }
  std::vector<NodeAddress> addresses() const;

  // The server of a key's slot, as the cluster was formed.
  int OwnerOf(const std::string& key) const;
  std::string IdOf(int i);  // what the nodes call it

  // Makes server `to` the owner of the slot, with no keys moved, and tells every server but those
  // that are down.
  void AssignSlot(int slot, int to);

  // Whether every server in `of` says "cluster_state:ok" in time.
  bool WaitUntilOk(const std::vector<int>& of);

 private:
  const int masters_;
  std::vector<std::unique_ptr<RedisServer>> servers_;
};

// Polls `done` for up to half a minute.
bool Eventually(const std::function<bool()>& done);

// Options with timeouts short enough for tests.
RedisClientOptions TestClientOptions(std::vector<NodeAddress> nodes, bool cluster);

}  // namespace fourierkv
