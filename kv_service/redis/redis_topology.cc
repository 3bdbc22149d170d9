#include "kv_service/redis/redis_topology.h"

#include <algorithm>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kv_service/redis/reply_status.h"

namespace fourierkv {
namespace {

constexpr absl::Duration kFirstPause = absl::Milliseconds(200);  // between two readings
constexpr absl::Duration kMaxPause = absl::Seconds(5);

}  // namespace

RedisTopology::RedisTopology(std::vector<NodeAddress> seeds, RedisConnectionOptions options,
                             absl::Duration period, RedisMetrics* metrics)
    : seeds_(std::move(seeds)),
      options_(std::move(options)),
      period_(period),
      metrics_(metrics),
      thread_([this] { Run(); }) {}

RedisTopology::~RedisTopology() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

RedisTopology::View RedisTopology::Get() const {
  const std::lock_guard lock(mutex_);
  return view_;
}

RedisTopology::View RedisTopology::WaitPast(uint64_t version, absl::Time deadline) const {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, absl::ToChronoTime(deadline), [&] { return view_.version > version; });
  return view_;
}

void RedisTopology::MarkStale() {
  {
    const std::lock_guard lock(mutex_);
    stale_ = true;
  }
  changed_.notify_all();
}

void RedisTopology::Learn(int slot, const NodeAddress& owner) {
  {
    const std::lock_guard lock(mutex_);
    auto map =
        view_.map == nullptr ? std::make_shared<SlotMap>() : std::make_shared<SlotMap>(*view_.map);
    map->SetOwner(slot, owner);
    view_.map = std::move(map);
    stale_ = true;
  }
  changed_.notify_all();
}

void RedisTopology::Run() {
  absl::BitGen random;
  absl::Duration pause = kFirstPause;
  absl::Time next = absl::Now();
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait_until(lock, absl::ToChronoTime(absl::Now() + period_),
                          [&] { return stale_ || stopping_; });
      changed_.wait_until(lock, absl::ToChronoTime(next), [&] { return stopping_; });
      if (stopping_) return;
      stale_ = false;
    }
    SlotMap map;
    absl::Status status = ReadFromAnyNode(&map);
    RedisMetrics::Add(status.ok() ? metrics_->topology_reads : metrics_->topology_failures, 1);
    pause = status.ok() ? kFirstPause : std::min(pause * 2, kMaxPause);
    next = absl::Now() + pause * absl::Uniform(random, 0.5, 1.0);
    {
      const std::lock_guard lock(mutex_);
      if (status.ok()) {
        view_.map = std::make_shared<const SlotMap>(std::move(map));
      } else {
        stale_ = true;
      }
      ++view_.version;
      view_.status = std::move(status);
    }
    changed_.notify_all();
  }
}

absl::Status RedisTopology::ReadFromAnyNode(SlotMap* map) {
  absl::Status last = absl::OkStatus();
  for (const NodeAddress& node : Candidates()) {
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return absl::CancelledError("the client is closing");
    }
    absl::StatusOr<SlotMap> read = ReadFrom(node);
    // A node that was reset or forgotten knows of no slots; others may.
    if (read.ok() && read->nodes().empty()) {
      last = absl::UnavailableError(
          absl::StrCat("Redis node ", node.ToString(), " knows of no slots: is it in a cluster?"));
    } else if (read.ok()) {
      *map = *std::move(read);
      return absl::OkStatus();
    } else {
      last = read.status();
    }
  }
  return last;
}

absl::StatusOr<SlotMap> RedisTopology::ReadFrom(const NodeAddress& node) {
  const absl::Time deadline = absl::Now() + options_.connect_timeout + options_.stall_timeout;
  auto connection = RedisConnection::Connect(node, options_, deadline);
  if (!connection.ok()) return connection.status();
  const RedisCommand command = RedisCommand::Of({"CLUSTER", "SLOTS"});
  const RedisCommand* const commands[] = {&command};
  auto replies = (*connection)->Call(commands, deadline);
  if (!replies.ok()) return replies.status();
  if (replies->front().IsError()) return StatusOfErrorReply(replies->front().text);
  return SlotMap::FromReply(replies->front(), node);
}

std::vector<NodeAddress> RedisTopology::Candidates() const {
  const std::shared_ptr<const SlotMap> map = Get().map;
  std::vector<NodeAddress> nodes;
  if (map != nullptr) nodes = map->nodes();
  absl::BitGen random;
  std::shuffle(nodes.begin(), nodes.end(), random);
  std::vector<NodeAddress> seeds = seeds_;
  std::shuffle(seeds.begin(), seeds.end(), random);
  for (NodeAddress& seed : seeds) {
    if (std::find(nodes.begin(), nodes.end(), seed) == nodes.end()) nodes.push_back(seed);
  }
  return nodes;
}

}  // namespace fourierkv
