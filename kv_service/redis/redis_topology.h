// Keeps a client's view of its cluster up to date.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "kv_service/redis/redis_connection.h"
#include "kv_service/redis/redis_metrics.h"
#include "kv_service/redis/slot_map.h"

namespace fourierkv {

// Asks nodes for CLUSTER SLOTS from a thread of its own: at once, when told that its view is stale,
// and now and then. Pauses between attempts that fail grow and are jittered. Thread safe.
class RedisTopology {
 public:
  struct View {
    std::shared_ptr<const SlotMap> map;  // null until some node has answered
    uint64_t version = 0;                // how often nodes were asked, whatever came of it
    absl::Status status;                 // of the last time
  };

  // `seeds` are asked when no known node answers. `metrics` must outlive this.
  RedisTopology(std::vector<NodeAddress> seeds, RedisConnectionOptions options,
                absl::Duration period, RedisMetrics* metrics);
  // Waits for an attempt that is running: at most one connect and one stall timeout.
  ~RedisTopology();
  RedisTopology(const RedisTopology&) = delete;
  RedisTopology& operator=(const RedisTopology&) = delete;

  View Get() const;

  // The first view whose version is above `version`, or the latest one at `deadline`.
  View WaitPast(uint64_t version, absl::Time deadline) const;

  // Asks for a new view soon.
  void MarkStale();

  // Of a MOVED reply; the rest of the view is then stale, too.
  void Learn(int slot, const NodeAddress& owner);

 private:
  void Run();
  absl::Status ReadFromAnyNode(SlotMap* map);
  absl::StatusOr<SlotMap> ReadFrom(const NodeAddress& node);
  std::vector<NodeAddress> Candidates() const;

  const std::vector<NodeAddress> seeds_;
  const RedisConnectionOptions options_;
  const absl::Duration period_;
  RedisMetrics* const metrics_;
  mutable std::mutex mutex_;  // guards what follows
  mutable std::condition_variable changed_;
  View view_;
  bool stale_ = true;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace fourierkv
