// A TCP server that speaks whatever a test wants where a Redis node is expected.

#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kv_service/redis/node_address.h"

namespace fourierkv {

// Each connection has a thread, which reads commands and sends what the test answers, byte for
// byte.
class FakeNode {
 public:
  using Words = std::vector<std::string>;
  // Called from several threads at once. "" says nothing; kHangUp closes the connection.
  using Answer = std::function<std::string(const Words& command)>;
  static constexpr char kHangUp[] = "<hang up>";

  explicit FakeNode(Answer answer);
  ~FakeNode();
  FakeNode(const FakeNode&) = delete;
  FakeNode& operator=(const FakeNode&) = delete;

  const NodeAddress& address() const { return address_; }
  int connections() const { return connections_; }  // accepted so far
  std::vector<Words> commands() const;              // received so far

 private:
  void Accept();
  void Serve(int fd);

  const Answer answer_;
  NodeAddress address_;
  int listener_ = -1;
  std::atomic<bool> stopping_{false};
  std::atomic<int> connections_{0};
  mutable std::mutex mutex_;  // guards what follows
  std::vector<Words> commands_;
  std::vector<int> sockets_;
  std::vector<std::thread> threads_;
  std::thread acceptor_;
};

// Wire forms.
std::string Bulk(const std::string& text);
// CLUSTER SLOTS of one node that has everything.
std::string AllSlotsAt(const NodeAddress& node);

}  // namespace fourierkv
