// Changes settings of a server that runs.

#pragma once

#include "absl/status/status.h"
#include "kv_service/rpc/server_flags.h"
#include "kv_service/rpc/service_core.h"
#include "proto/support/live_duration.h"

namespace fourierkv {

// Reads command line and --config file again, and the files of quotas and of token keys that are in
// use. All of it takes effect or, if anything is wrong or cannot be changed, none. From one thread.
//
// Can be changed: --log-level, --log-format, --slow-request-ms, --max-lease-seconds,
// --max-pin-seconds and --max-ttl-seconds, and what is in the files of --quotas and --auth-keys.
// Leases, pins and segments that there are keep the time that they were given.
class ConfigReload {
 public:
  // `settings` are those in force. `argv`, `core` and `slow_request` must outlive it.
  ConfigReload(int argc, const char* const* argv, FlagSettings settings, ServiceCore* core,
               LiveDuration* slow_request);

  // Logs what came of it: "config.reloaded" with the flags that changed, or "config.refused".
  void Run();

 private:
  absl::Status Reload(std::string& changed);

  const int argc_;
  const char* const* const argv_;
  FlagSettings settings_;
  ServiceCore* const core_;
  LiveDuration* const slow_request_;
};

}  // namespace fourierkv
