#include "kv_service/redis/node_pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace fourierkv {
namespace {

// A deadline may be too short for any node. So many in a row without a byte are the node's fault.
constexpr int kMaxSilences = 3;

}  // namespace

NodePool::NodePool(NodeAddress address, RedisConnectionOptions options, int max_connections,
                   RedisMetrics* metrics)
    : address_(std::move(address)),
      options_(std::move(options)),
      max_connections_(max_connections),
      metrics_(metrics),
      breaker_(CircuitBreakerOptions{}) {}

absl::StatusOr<std::vector<RedisReply>> NodePool::Call(
    std::span<const RedisCommand* const> commands, absl::Time deadline) {
  for (;;) {
    absl::StatusOr<ConnectionPtr> taken = Take(deadline);
    if (!taken.ok()) return taken.status();  // all are busy: no word about the node
    ConnectionPtr connection = *std::move(taken);
    const bool kept = connection != nullptr;
    if (!kept) {
      absl::StatusOr<ConnectionPtr> made = RedisConnection::Connect(address_, options_, deadline);
      RedisMetrics::Add(made.ok() ? metrics_->connects : metrics_->connect_failures, 1);
      if (!made.ok()) {
        Give(nullptr);
        Report(made.status(), false);
        return made.status();
      }
      connection = *std::move(made);
    }
    RedisMetrics::Add(metrics_->commands, commands.size());
    const absl::Time begun = absl::Now();
    absl::StatusOr<std::vector<RedisReply>> replies = connection->Call(commands, deadline);
    const bool heard = connection->heard();
    if (!replies.ok()) {
      RedisMetrics::Add(metrics_->broken_connections, 1);
      connection = nullptr;
    }
    Give(std::move(connection));
    // A kept connection that the server had closed says nothing about the server now.
    const absl::Time now = absl::Now();
    if (kept && !heard && absl::IsUnavailable(replies.status()) && now < deadline &&
        now - begun < options_.stall_timeout) {
      RedisMetrics::Add(metrics_->retries, 1);
      DropIdle();
      continue;
    }
    Report(replies.status(), heard);
    return replies;
  }
}

absl::StatusOr<NodePool::ConnectionPtr> NodePool::Take(absl::Time deadline) {
  std::unique_lock lock(mutex_);
  if (!given_.wait_until(lock, absl::ToChronoTime(deadline),
                         [&] { return in_use_ < max_connections_; })) {
    RedisMetrics::Add(metrics_->deadlines_exceeded, 1);
    return absl::DeadlineExceededError(absl::StrCat("all ", max_connections_,
                                                    " connections to Redis node ",
                                                    address_.ToString(), " are in use"));
  }
  ++in_use_;
  while (!idle_.empty()) {
    ConnectionPtr connection = std::move(idle_.back());
    idle_.pop_back();
    if (connection->IsQuiet()) return connection;
  }
  return ConnectionPtr();
}

void NodePool::Give(ConnectionPtr connection) {
  const std::lock_guard lock(mutex_);
  --in_use_;
  if (connection != nullptr) idle_.push_back(std::move(connection));
  given_.notify_one();
}

void NodePool::Report(const absl::Status& status, bool heard) {
  const bool late = absl::IsDeadlineExceeded(status);
  bool silent = false;
  {
    const std::lock_guard lock(mutex_);
    silences_ = late && !heard ? silences_ + 1 : 0;
    silent = silences_ >= kMaxSilences;
  }
  if (late) RedisMetrics::Add(metrics_->deadlines_exceeded, 1);
  if (status.ok()) {
    breaker_.Succeed();
  } else if (!late || silent) {
    breaker_.Fail(absl::Now());
    DropIdle();
  }
}

// After one connection broke, the others are not likely to be better.
void NodePool::DropIdle() {
  std::vector<ConnectionPtr> dropped;
  const std::lock_guard lock(mutex_);
  dropped.swap(idle_);
}

}  // namespace fourierkv
