// The flags of fourierkv-server.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kv_service/tiers/redis_flags.h"
#include "proto/support/server_security.h"

namespace fourierkv {

struct ServerFlags {
  std::string listen = "127.0.0.1:7070";
  std::string metrics = "127.0.0.1:0";
  std::string device = "cpu";
  int threads = 0;
  uint64_t memory = uint64_t{4} << 30;
  uint64_t scratch_memory = uint64_t{256} << 20;
  std::string disk_path;
  uint64_t disk_bytes = uint64_t{64} << 30;
  std::string disk_key_file;
  RedisFlags redis;
  int max_puts = 64;
  int max_calls = 512;
  double stall_seconds = 60;
  double max_lease_seconds = 600;
  double max_pin_seconds = 86400;
  double max_ttl_seconds = 2592000;
  int max_followers = 64;
  int64_t event_log = int64_t{1} << 17;
  double drain_seconds = 10;
  ServerSecurityFlags security;
  std::string health_listen;
  std::string quotas;
  int slow_request_ms = 1000;
  bool reflection = true;
  std::string log_level = "info";
  std::string log_format = "text";
};

// What command line and --config file say, by the name of each flag; nothing of those left out.
using FlagSettings = std::map<std::string, std::vector<std::string>>;

struct ParsedFlags {
  ServerFlags flags;
  FlagSettings settings;
};

// Reads the command line, and the file that it names with --config. InvalidArgument naming flag or
// file for what is wrong.
absl::StatusOr<ParsedFlags> ParseServerFlags(int argc, const char* const* argv);

// The same at the start of a program: prints what is wrong, or the help or version that was asked
// for, and ends the process.
ParsedFlags ServerFlagsOrExit(int argc, const char* const* argv);

}  // namespace fourierkv
