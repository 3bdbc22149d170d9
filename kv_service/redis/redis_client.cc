#include "kv_service/redis/redis_client.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kv_service/redis/hash_slot.h"
#include "kv_service/redis/node_pool.h"
#include "kv_service/redis/redis_topology.h"
#include "kv_service/redis/reply_status.h"

namespace fourierkv {
namespace {

// A slot that moves while we ask costs two; more says that the nodes disagree.
constexpr int kMaxRedirections = 8;

// How long a command whose node failed waits to hear whether its slot has a new owner.
constexpr absl::Duration kNewOwnerPatience = absl::Milliseconds(500);

// Beside those of the nodes that the cluster has now.
constexpr size_t kMaxStrayPools = 64;

}  // namespace

// The commands of one Run, until each has its result.
class RedisClient::Job {
 public:
  Job(RedisClient* client, std::span<const RedisCommand> commands, absl::Time deadline)
      : client_(client),
        commands_(commands),
        deadline_(deadline),
        results_(commands.size(), absl::UnknownError("not run")) {}

  std::vector<absl::StatusOr<RedisReply>> Run();

 private:
  // A command and those behind it that go with it.
  struct Unit {
    size_t first = 0;
    size_t end = 0;
    int slot = 0;
    std::optional<NodeAddress> ask;  // for the next try only
  };

  std::vector<Unit> Units() const;
  RedisTopology::View View() const;
  void RunAt(const NodeAddress& node, std::vector<Unit> units);
  void Handle(const NodeAddress& node, Unit unit, std::span<RedisReply> replies);
  void Fail(const Unit& unit, const absl::Status& status);
  bool OwnersChanged(const SlotMap& before, const SlotMap& now) const;

  RedisClient* const client_;
  const std::span<const RedisCommand> commands_;
  const absl::Time deadline_;
  std::vector<absl::StatusOr<RedisReply>> results_;
  // Of one round:
  std::vector<Unit> redirected_;
  std::vector<Unit> failed_;  // whose slot is likely to get a new owner
  bool stale_ = false;        // the nodes' owners are not what we think
};

std::vector<RedisClient::Job::Unit> RedisClient::Job::Units() const {
  std::vector<Unit> units;
  for (size_t i = 0; i < commands_.size(); ++i) {
    if (commands_[i].with_previous && !units.empty()) {
      units.back().end = i + 1;
    } else {
      units.push_back({i, i + 1, HashSlot(commands_[i].key), std::nullopt});
    }
  }
  return units;
}

RedisTopology::View RedisClient::Job::View() const {
  if (client_->topology_ == nullptr) {
    RedisTopology::View view;
    view.map = std::make_shared<const SlotMap>(SlotMap::Single(client_->options_.nodes.front()));
    return view;
  }
  RedisTopology::View view = client_->topology_->Get();
  if (view.map == nullptr && view.version == 0) view = client_->topology_->WaitPast(0, deadline_);
  return view;
}

std::vector<absl::StatusOr<RedisReply>> RedisClient::Job::Run() {
  bool retried = false;
  std::vector<Unit> pending = Units();
  for (int redirections = 0; !pending.empty();) {
    const RedisTopology::View view = View();
    if (view.map == nullptr) {
      const absl::Status status =
          view.version == 0
              ? absl::DeadlineExceededError("no Redis node has told of its cluster in time")
              : absl::UnavailableError(
                    absl::StrCat("no Redis node tells of its cluster: ", view.status.message()));
      for (const Unit& unit : pending) Fail(unit, status);
      break;
    }
    redirected_.clear();
    failed_.clear();
    stale_ = false;
    std::map<NodeAddress, std::vector<Unit>> by_node;
    for (Unit& unit : pending) {
      const NodeAddress* node = unit.ask.has_value() ? &*unit.ask : view.map->Owner(unit.slot);
      if (node == nullptr) {
        Fail(unit, absl::UnavailableError(
                       absl::StrCat("no Redis node has hash slot ", unit.slot, " now")));
        stale_ = true;
      } else {
        by_node[*node].push_back(std::move(unit));
      }
    }
    for (auto& [node, units] : by_node) RunAt(node, std::move(units));
    pending.clear();
    if (!redirected_.empty() && ++redirections <= kMaxRedirections) pending = redirected_;
    if (client_->topology_ == nullptr || (failed_.empty() && !stale_)) continue;
    client_->topology_->MarkStale();
    if (failed_.empty() || retried) continue;
    retried = true;
    const RedisTopology::View newer = client_->topology_->WaitPast(
        view.version, std::min(deadline_, absl::Now() + kNewOwnerPatience));
    if (newer.map == nullptr || !OwnersChanged(*view.map, *newer.map)) continue;
    RedisMetrics::Add(client_->metrics_.retries, failed_.size());
    pending.insert(pending.end(), failed_.begin(), failed_.end());
  }
  return std::move(results_);
}

bool RedisClient::Job::OwnersChanged(const SlotMap& before, const SlotMap& now) const {
  return std::any_of(failed_.begin(), failed_.end(), [&](const Unit& unit) {
    const NodeAddress* then = before.Owner(unit.slot);
    const NodeAddress* owner = now.Owner(unit.slot);
    return owner != nullptr && (then == nullptr || *then != *owner);
  });
}

void RedisClient::Job::RunAt(const NodeAddress& node, std::vector<Unit> units) {
  RedisCommand asking;
  asking.words = {"ASKING"};
  const std::shared_ptr<NodePool> pool = client_->Pool(node);
  if (!pool->Admit(absl::Now())) {
    const absl::Status refused = absl::UnavailableError(absl::StrCat(
        "Redis node ", node.ToString(), " failed a moment ago; it is tried again soon"));
    RedisMetrics::Add(client_->metrics_.refusals, units.size());
    for (const Unit& unit : units) Fail(unit, refused);
    stale_ = true;
    return;
  }
  std::vector<const RedisCommand*> sent;
  for (const Unit& unit : units) {
    if (unit.ask.has_value()) sent.push_back(&asking);
    for (size_t i = unit.first; i < unit.end; ++i) sent.push_back(&commands_[i]);
  }
  absl::StatusOr<std::vector<RedisReply>> replies = pool->Call(sent, deadline_);
  if (!replies.ok()) {
    for (const Unit& unit : units) Fail(unit, replies.status());
    if (absl::IsUnavailable(replies.status())) {
      failed_.insert(failed_.end(), units.begin(), units.end());
    }
    return;
  }
  std::span<RedisReply> rest(*replies);
  for (Unit& unit : units) {
    if (unit.ask.has_value()) rest = rest.subspan(1);
    const size_t size = unit.end - unit.first;
    Handle(node, std::move(unit), rest.first(size));
    rest = rest.subspan(size);
  }
}

void RedisClient::Job::Handle(const NodeAddress& node, Unit unit, std::span<RedisReply> replies) {
  for (size_t i = 0; i < replies.size(); ++i) {
    if (replies[i].IsError()) {
      results_[unit.first + i] = StatusOfErrorReply(replies[i].text);
    } else {
      results_[unit.first + i] = std::move(replies[i]);
    }
  }
  unit.ask.reset();
  if (!replies.front().IsError()) return;
  std::optional<Redirection> redirection = ParseRedirection(replies.front().text);
  if (!redirection.has_value()) {
    stale_ = stale_ || absl::IsUnavailable(results_[unit.first].status());
    if (absl::StartsWith(replies.front().text, "READONLY")) failed_.push_back(std::move(unit));
    return;
  }
  if (client_->topology_ == nullptr) {
    Fail(unit, absl::FailedPreconditionError(absl::StrCat(
                   "Redis node ", node.ToString(),
                   " is part of a cluster, but the client was told that it is alone")));
    return;
  }
  if (redirection->to.host.empty()) redirection->to.host = node.host;
  if (redirection->ask) {
    RedisMetrics::Add(client_->metrics_.asked, 1);
    unit.ask = std::move(redirection->to);
  } else {
    RedisMetrics::Add(client_->metrics_.moved, 1);
    client_->topology_->Learn(unit.slot, redirection->to);
  }
  redirected_.push_back(std::move(unit));
}

void RedisClient::Job::Fail(const Unit& unit, const absl::Status& status) {
  for (size_t i = unit.first; i < unit.end; ++i) results_[i] = status;
}

absl::StatusOr<std::unique_ptr<RedisClient>> RedisClient::Create(RedisClientOptions options) {
  if (options.nodes.empty()) return absl::InvalidArgumentError("no Redis node is given");
  if (!options.cluster && options.nodes.size() != 1) {
    return absl::InvalidArgumentError(
        "several Redis nodes are given, but only a cluster has several");
  }
  if (options.connections_per_node < 1) {
    return absl::InvalidArgumentError("connections_per_node must be at least 1");
  }
  if (options.connection.connect_timeout <= absl::ZeroDuration() ||
      options.connection.stall_timeout <= absl::ZeroDuration() ||
      options.topology_period <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError("timeouts and periods must be positive");
  }
  if (!options.connection.username.empty() && options.connection.password == nullptr) {
    return absl::InvalidArgumentError("a Redis user is given without a password");
  }
  return std::unique_ptr<RedisClient>(new RedisClient(std::move(options)));
}

RedisClient::RedisClient(RedisClientOptions options) : options_(std::move(options)) {
  if (options_.cluster) {
    topology_ = std::make_unique<RedisTopology>(options_.nodes, options_.connection,
                                                options_.topology_period, &metrics_);
  }
}

RedisClient::~RedisClient() = default;

std::vector<absl::StatusOr<RedisReply>> RedisClient::Run(std::span<const RedisCommand> commands,
                                                         absl::Time deadline) {
  return Job(this, commands, deadline).Run();
}

absl::StatusOr<RedisReply> RedisClient::RunOne(const RedisCommand& command, absl::Time deadline) {
  return std::move(Run(std::span(&command, 1), deadline).front());
}

std::shared_ptr<NodePool> RedisClient::Pool(const NodeAddress& node) {
  const std::lock_guard lock(mutex_);
  std::shared_ptr<NodePool>& pool = pools_[node];
  if (pool != nullptr) return pool;
  pool = std::make_shared<NodePool>(node, options_.connection, options_.connections_per_node,
                                    &metrics_);
  const std::shared_ptr<NodePool> made = pool;
  if (topology_ == nullptr) return made;
  // Nodes come and go, and replies may name any.
  const std::shared_ptr<const SlotMap> map = topology_->Get().map;
  const size_t known = map == nullptr ? 0 : map->nodes().size();
  if (pools_.size() > known + kMaxStrayPools) {
    std::erase_if(pools_, [&](const auto& entry) {
      return entry.second.use_count() == 1 && (map == nullptr || !map->Names(entry.first));
    });
  }
  return made;
}

}  // namespace fourierkv
