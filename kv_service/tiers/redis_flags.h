// The flags of a program that uses the Redis tier.

#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "kv_service/tiers/redis_tier.h"

namespace CLI {
class App;
}

namespace fourierkv {

struct RedisFlags {
  std::string nodes;  // empty: no Redis
  bool single = false;
  std::string user;
  std::string password_file;
  std::string prefix = "fourierkv";
  double ttl_seconds = 86400;
  int wait_replicas = 0;
  int connections = 8;
};

void DeclareRedisFlags(CLI::App& app, RedisFlags& flags);

// Nullopt if no node is given. InvalidArgument, naming the flag at fault. The password file is read
// here for the first time, and again for every new connection, so that a password can be changed
// without a restart.
absl::StatusOr<std::optional<RedisTierOptions>> MakeRedisTierOptions(const RedisFlags& flags);

}  // namespace fourierkv
