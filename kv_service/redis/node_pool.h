// The connections to one Redis node.

#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kv_service/redis/circuit_breaker.h"
#include "kv_service/redis/redis_connection.h"
#include "kv_service/redis/redis_metrics.h"

namespace fourierkv {

// A node that refuses connections or stalls is left alone for a while; one caller at a time finds
// out whether it is back. Thread safe.
class NodePool {
 public:
  // `metrics` must outlive the pool.
  NodePool(NodeAddress address, RedisConnectionOptions options, int max_connections,
           RedisMetrics* metrics);

  const NodeAddress& address() const { return address_; }

  // False while the node is left alone. Who gets true must Call.
  bool Admit(absl::Time now) { return breaker_.Allow(now); }

  // RedisConnection::Call on some connection, once more on a new one if a kept one turns out to be
  // broken. Waits for a connection if all are in use.
  absl::StatusOr<std::vector<RedisReply>> Call(std::span<const RedisCommand* const> commands,
                                               absl::Time deadline);

 private:
  using ConnectionPtr = std::unique_ptr<RedisConnection>;

  // A kept connection, or null and the right to make one; Give ends either.
  absl::StatusOr<ConnectionPtr> Take(absl::Time deadline);
  void Give(ConnectionPtr connection);  // null: it is gone
  void Report(const absl::Status& status, bool heard);
  void DropIdle();

  const NodeAddress address_;
  const RedisConnectionOptions options_;
  const int max_connections_;
  RedisMetrics* const metrics_;
  CircuitBreaker breaker_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable given_;
  std::vector<ConnectionPtr> idle_;
  int in_use_ = 0;
  int silences_ = 0;  // calls in a row that got nothing before their deadline
};

}  // namespace fourierkv
