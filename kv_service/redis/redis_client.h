// A client of a Redis Cluster, or of one Redis server.

#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kv_service/redis/node_address.h"
#include "kv_service/redis/redis_command.h"
#include "kv_service/redis/redis_connection.h"
#include "kv_service/redis/redis_metrics.h"
#include "kv_service/redis/redis_reply.h"

namespace fourierkv {

class NodePool;
class RedisTopology;

struct RedisClientOptions {
  // Any nodes of the cluster; the others are found through them. Of a single server: exactly one.
  std::vector<NodeAddress> nodes;
  bool cluster = true;
  RedisConnectionOptions connection;
  int connections_per_node = 8;
  absl::Duration topology_period = absl::Minutes(1);
};

// Sends commands to the nodes that own their keys, follows MOVED and ASK, connects again with
// growing, jittered pauses, and leaves alone for a while what fails. Never blocks beyond the
// deadline that it is given. Thread safe.
class RedisClient {
 public:
  // Connects in the background. InvalidArgument for bad options.
  static absl::StatusOr<std::unique_ptr<RedisClient>> Create(RedisClientOptions options);
  ~RedisClient();
  RedisClient(const RedisClient&) = delete;
  RedisClient& operator=(const RedisClient&) = delete;

  // One result per command; never an error reply. Commands for one node go over one connection, in
  // order, without waiting for each other's replies; if some are redirected, the order among them
  // and the others is lost.
  //   Unavailable        the node, or the whole cluster, is gone, stalled or not serving now
  //   DeadlineExceeded   whether the command was executed is not known
  //   others             as in StatusOfErrorReply
  std::vector<absl::StatusOr<RedisReply>> Run(std::span<const RedisCommand> commands,
                                              absl::Time deadline);
  absl::StatusOr<RedisReply> RunOne(const RedisCommand& command, absl::Time deadline);

  const RedisMetrics& metrics() const { return metrics_; }

 private:
  class Job;

  explicit RedisClient(RedisClientOptions options);
  std::shared_ptr<NodePool> Pool(const NodeAddress& node);

  const RedisClientOptions options_;
  RedisMetrics metrics_;
  std::unique_ptr<RedisTopology> topology_;  // null for a single server
  std::mutex mutex_;                         // guards what follows
  std::map<NodeAddress, std::shared_ptr<NodePool>> pools_;
};

}  // namespace fourierkv
