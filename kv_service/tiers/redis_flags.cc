#include "kv_service/tiers/redis_flags.h"

#include <CLI/CLI.hpp>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

constexpr size_t kMaxPasswordBytes = 4096;

// The file's first line.
absl::StatusOr<std::string> ReadPassword(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxPasswordBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--redis-password-file: cannot read '", path, "'"));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  text.resize(std::min(text.size(), text.find_first_of("\r\n")));
  if (text.empty() || text.size() > kMaxPasswordBytes) {
    return absl::InvalidArgumentError(absl::StrCat("--redis-password-file: the first line of '",
                                                   path, "' must have 1 to ", kMaxPasswordBytes,
                                                   " bytes"));
  }
  return text;
}

}  // namespace

void DeclareRedisFlags(CLI::App& app, RedisFlags& flags) {
  app.add_option("--redis", flags.nodes,
                 "HOST:PORT,... of some nodes of a Redis Cluster, the tier that replicas of this "
                 "server share; \"\" for none");
  app.add_flag("--redis-single", flags.single, "--redis is one server, not a cluster");
  app.add_option("--redis-user", flags.user, "ACL user; \"\": the default user");
  app.add_option("--redis-password-file", flags.password_file,
                 "File whose first line is the password; read again for every connection");
  app.add_option("--redis-prefix", flags.prefix, "Starts the name of every key in Redis")
      ->capture_default_str();
  app.add_option("--redis-ttl-seconds", flags.ttl_seconds,
                 "How long what nobody uses stays in Redis")
      ->check(CLI::Range(60.0, 31536000.0))
      ->capture_default_str();
  app.add_option("--redis-wait-replicas", flags.wait_replicas,
                 "Redis replicas that must have a segment before it counts as SHARED, beside the "
                 "master")
      ->check(CLI::Range(0, 16))
      ->capture_default_str();
  app.add_option("--redis-connections", flags.connections,
                 "Connections to each Redis node, at most")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
}

absl::StatusOr<std::optional<RedisTierOptions>> MakeRedisTierOptions(const RedisFlags& flags) {
  if (flags.nodes.empty()) return std::nullopt;
  absl::StatusOr<std::vector<NodeAddress>> nodes = ParseNodeAddresses(flags.nodes, "--redis");
  if (!nodes.ok()) return nodes.status();
  if (flags.single && nodes->size() != 1) {
    return absl::InvalidArgumentError("--redis-single: --redis must name exactly one server");
  }
  if (!flags.user.empty() && flags.password_file.empty()) {
    return absl::InvalidArgumentError("--redis-user needs --redis-password-file");
  }
  // Not so for NaN, either.
  if (!(flags.ttl_seconds >= 60 && flags.ttl_seconds <= 31536000)) {
    return absl::InvalidArgumentError("--redis-ttl-seconds must be 60 to 31536000");
  }
  RedisTierOptions options;
  options.client.nodes = *std::move(nodes);
  options.client.cluster = !flags.single;
  options.client.connections_per_node = flags.connections;
  options.client.connection.username = flags.user;
  if (!flags.password_file.empty()) {
    if (auto password = ReadPassword(flags.password_file); !password.ok()) return password.status();
    options.client.connection.password = [path = flags.password_file] {
      return ReadPassword(path);
    };
  }
  options.key_prefix = flags.prefix;
  options.ttl = absl::Seconds(flags.ttl_seconds);
  options.wait_replicas = flags.wait_replicas;
  return options;
}

}  // namespace fourierkv
