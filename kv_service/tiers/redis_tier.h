// The tier that all replicas share: a Redis Cluster, or one Redis server.

#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kv_service/core/namespace_directory.h"
#include "kv_service/core/profile_store.h"
#include "kv_service/core/segment_tier.h"
#include "kv_service/redis/redis_client.h"

namespace fourierkv {

struct RedisTierOptions {
  RedisClientOptions client;
  // Starts the name of every key, so that deployments can share a cluster. 1 to 64 printable bytes
  // without braces.
  std::string key_prefix = "fourierkv";
  // What nobody used for so long disappears.
  absl::Duration ttl = absl::Hours(24);
  int64_t chunk_bytes = int64_t{1} << 20;  // at most kMaxRedisChunkBytes
  // How many replicas of a master must have a record before Store says so.
  int wait_replicas = 0;
};

// Connects in the background: a cluster that is not there is no error. InvalidArgument for options
// out of bounds. `profiles`, whose source the tier becomes, so that profiles that others stored are
// found, and `namespaces` must outlive it.
//
// OK of Store: the master of every record's slot has it in memory (and `wait_replicas` of its
// replicas). What Redis itself then loses or evicts is missing, never wrong; so are keys of nodes
// that are down, while the others serve. Requires no parents, and knows no children: Remove forgets
// the keys alone. Stats count failures only: what a cluster holds nobody can say cheaply. Touch
// makes records live longer, from a thread of its own and now and then only.
//
// It is a RedisMetricsSource, too.
//
// A call in progress holds up to kWindowBytes and one reply beyond its budget. While the cluster
// does not answer, calls return Unavailable at once, but for one at a time that finds out whether
// it is back.
absl::StatusOr<std::unique_ptr<SegmentTier>> OpenRedisTier(RedisTierOptions options,
                                                           ProfileStore* profiles,
                                                           NamespaceDirectory* namespaces);

}  // namespace fourierkv
