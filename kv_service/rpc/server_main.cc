// fourierkv-server: stores, compresses and serves KV caches.

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/backend/compute_backend.h"
#include "compute/base/structured_log.h"
#include "kv_service/rpc/admin_service.h"
#include "kv_service/rpc/config_reload.h"
#include "kv_service/rpc/event_service.h"
#include "kv_service/rpc/kv_cache_service.h"
#include "kv_service/rpc/metrics_exporter.h"
#include "kv_service/rpc/profile_service.h"
#include "kv_service/rpc/server_flags.h"
#include "kv_service/rpc/service_core.h"
#include "kv_service/tiers/disk_tier.h"
#include "kv_service/tiers/redis_flags.h"
#include "kv_service/tiers/redis_tier.h"
#include "proto/support/live_duration.h"
#include "proto/support/server_runner.h"
#include "proto/support/server_security.h"

namespace fourierkv {
namespace {

// For calls of other kinds, and for those that are told that there are too many.
constexpr int kSpareThreads = 64;

absl::Status AddDiskTier(const ServerFlags& flags, ServiceCore& core) {
  if (flags.disk_path.empty()) {
    if (flags.disk_key_file.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError("--disk-key-file is given without --disk-path");
  }
  DiskTierOptions options;
  options.path = flags.disk_path;
  options.limit_bytes = static_cast<int64_t>(flags.disk_bytes);
  options.tenant_limit = [&core](absl::string_view tenant) {
    return core.quotas->DiskLimit(std::string(tenant));
  };
  if (!flags.disk_key_file.empty()) {
    absl::StatusOr<std::vector<DiskKey>> keys =
        ReadDiskKeys("--disk-key-file", flags.disk_key_file);
    if (!keys.ok()) return keys.status();
    options.keys = *std::move(keys);
  }
  absl::StatusOr<std::unique_ptr<SegmentTier>> tier =
      OpenDiskTier(options, &core.profiles, &core.namespaces);
  if (!tier.ok()) return tier.status();
  core.tiers.AddTier(*std::move(tier));
  return absl::OkStatus();
}

// The last tier: what it has, every replica of this server has.
absl::Status AddRedisTier(const ServerFlags& flags, ServiceCore& core) {
  absl::StatusOr<std::optional<RedisTierOptions>> options = MakeRedisTierOptions(flags.redis);
  if (!options.ok()) return options.status();
  if (!options->has_value()) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<SegmentTier>> tier =
      OpenRedisTier(**std::move(options), &core.profiles, &core.namespaces);
  if (!tier.ok()) return tier.status();
  core.tiers.AddTier(*std::move(tier));
  return absl::OkStatus();
}

absl::Status Serve(int argc, const char* const* argv) {
  const ParsedFlags parsed = ServerFlagsOrExit(argc, argv);
  const ServerFlags& flags = parsed.flags;
  if (absl::Status s = ConfigureLog(flags.log_level, flags.log_format); !s.ok()) return s;
  absl::StatusOr<ServerSecurity> security = MakeServerSecurity(flags.security, flags.listen);
  if (!security.ok()) return security.status();
  absl::StatusOr<std::unique_ptr<ComputeBackend>> backend =
      CreateBackend(flags.device, flags.threads);
  if (!backend.ok()) return backend.status();
  ServiceLimits limits;
  limits.memory_bytes = static_cast<int64_t>(flags.memory);
  limits.scratch_bytes = static_cast<int64_t>(flags.scratch_memory);
  limits.max_puts = flags.max_puts;
  limits.max_calls = flags.max_calls;
  limits.places = 2 * flags.threads;
  limits.stall = absl::Seconds(flags.stall_seconds);
  limits.max_lease = absl::Seconds(flags.max_lease_seconds);
  limits.max_pin = absl::Seconds(flags.max_pin_seconds);
  limits.max_ttl = absl::Seconds(flags.max_ttl_seconds);
  limits.max_followers = flags.max_followers;
  limits.event_log = flags.event_log;
  ServiceCore core(*std::move(backend), limits);
  if (absl::Status s = AddDiskTier(flags, core); !s.ok()) return s;
  if (absl::Status s = AddRedisTier(flags, core); !s.ok()) return s;
  core.access = security->access;
  if (!flags.quotas.empty()) {
    absl::StatusOr<std::unique_ptr<TenantQuotas>> quotas =
        TenantQuotas::Open("--quotas", flags.quotas);
    if (!quotas.ok()) return quotas.status();
    core.quotas = *std::move(quotas);
  }
  Log(LogLevel::kInfo, "server.start",
      {{"version", FOURIERKV_VERSION},
       {"backend", core.backend->name()},
       {"memory_bytes", limits.memory_bytes}});

  std::unique_ptr<MetricsExporter> metrics;
  if (!flags.metrics.empty()) {
    absl::StatusOr<std::unique_ptr<MetricsExporter>> started =
        MetricsExporter::Start(flags.metrics, &core);
    if (!started.ok()) return started.status();
    metrics = *std::move(started);
    Log(LogLevel::kInfo, "metrics.listening", {{"address", metrics->address()}});
  }

  KvCacheServiceImpl cache(&core);
  ProfileServiceImpl profiles(&core.profiles, &core.tiers);
  AdminServiceImpl admin(&core, RequestDrain);
  EventServiceImpl events(&core);
  ServerOptions options;
  options.listen = flags.listen;
  options.security = *std::move(security);
  options.health_listen = flags.health_listen;
  const auto slow = std::make_shared<LiveDuration>(absl::Milliseconds(flags.slow_request_ms));
  options.live_slow_request = slow;
  ConfigReload reload(argc, argv, parsed.settings, &core, slow.get());
  options.on_reload = [&] { reload.Run(); };
  options.reflection = flags.reflection;
  options.drain_deadline = absl::Seconds(flags.drain_seconds);
  options.max_receive_message_bytes = 16 << 20;
  options.max_threads =
      limits.max_calls + limits.max_outside() + limits.max_followers + kSpareThreads;
  options.on_drain = [&] { events.Drain(); };
  const absl::Status served = RunServer(options, {&cache, &profiles, &admin, &events});
  if (!core.tiers.Drain(absl::Now() + options.drain_deadline)) {
    Log(LogLevel::kWarning, "server.not_all_written",
        {{"bytes", core.tiers.write_back().queued_bytes}});
  }
  return served;
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  fourierkv::PrepareServerProcess(/*reloads=*/true);
  const absl::Status status = fourierkv::Serve(argc, argv);
  if (!status.ok()) {
    std::fprintf(stderr, "fourierkv-server: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}
