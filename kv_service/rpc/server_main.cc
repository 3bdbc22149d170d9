// fourierkv-server: stores, compresses and serves KV caches.

#include <CLI/CLI.hpp>
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
#include "kv_service/rpc/event_service.h"
#include "kv_service/rpc/kv_cache_service.h"
#include "kv_service/rpc/metrics_exporter.h"
#include "kv_service/rpc/profile_service.h"
#include "kv_service/rpc/service_core.h"
#include "kv_service/tiers/disk_tier.h"
#include "kv_service/tiers/redis_flags.h"
#include "kv_service/tiers/redis_tier.h"
#include "proto/support/flag_checks.h"
#include "proto/support/server_runner.h"
#include "proto/support/server_security.h"

namespace fourierkv {
namespace {

struct Flags {
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

void Declare(CLI::App& app, Flags& flags) {
  app.set_version_flag("--version", std::string("fourierkv-server ") + FOURIERKV_VERSION);
  app.set_config("--config", "", "Read flags from a TOML or INI file; the command line wins");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.add_option("--listen", flags.listen, "HOST:PORT (port 0: any free one) or unix:PATH")
      ->capture_default_str();
  app.add_option("--metrics", flags.metrics, "HOST:PORT of Prometheus /metrics; \"\" for none")
      ->capture_default_str();
  app.add_option("--memory", flags.memory, "Byte budget of the memory tier, as 512MB or 4GB")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(uint64_t{1} << 20, uint64_t{1} << 46))
      ->default_str("4GB");
  app.add_option("--scratch-memory", flags.scratch_memory,
                 "Byte budget of forms made for a fetch and not kept")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(uint64_t{1} << 20, uint64_t{1} << 46))
      ->default_str("256MB");
  app.add_option("--disk-path", flags.disk_path, "Directory of the disk tier; \"\": memory alone")
      ->capture_default_str();
  app.add_option("--disk-bytes", flags.disk_bytes, "Byte budget of the disk tier's payload files")
      ->transform(CLI::AsSizeValue(false))
      ->check(CLI::Range(uint64_t{1} << 20, uint64_t{1} << 50))
      ->default_str("64GB");
  app.add_option("--disk-key-file", flags.disk_key_file,
                 "File of keys that the disk tier is encrypted with, the first for what is new "
                 "(docs/security.md); \"\": not encrypted");
  DeclareRedisFlags(app, flags.redis);
  app.add_option("--max-puts", flags.max_puts, "Puts in progress at the same time")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--stall-seconds", flags.stall_seconds,
                 "How long a client in a put or fetch may neither send nor read before the call is "
                 "cancelled")
      ->check(SecondsBetween(0.01, 3600))
      ->capture_default_str();
  app.add_option("--max-lease-seconds", flags.max_lease_seconds,
                 "Longest lease that MatchPrefix grants")
      ->check(SecondsBetween(1, 604800))
      ->capture_default_str();
  app.add_option("--max-pin-seconds", flags.max_pin_seconds, "Longest time of a Pin")
      ->check(SecondsBetween(1, 604800))
      ->capture_default_str();
  app.add_option("--max-ttl-seconds", flags.max_ttl_seconds,
                 "Longest time that a put may ask to be kept for")
      ->check(SecondsBetween(1, 315360000))
      ->capture_default_str();
  app.add_option("--max-followers", flags.max_followers, "Subscribers to events at the same time")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  app.add_option("--event-log", flags.event_log,
                 "Events kept for followers that come back (about 150 bytes each)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str();
  app.add_option("--device", flags.device, "Compute backend that encodes and decodes")
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "Compute threads; 0: one per hardware thread")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--drain-seconds", flags.drain_seconds,
                 "How long running calls may take to finish after SIGTERM")
      ->check(SecondsBetween(0, 3600))
      ->capture_default_str();
  DeclareServerSecurityFlags(app, flags.security);
  app.add_option("--health-listen", flags.health_listen,
                 "HOST:PORT for health checks alone, in plaintext and without tokens, for probes");
  app.add_option(
      "--quotas", flags.quotas,
      "JSON file of what tenants may take (docs/security.md); read again when it changes");
  app.add_option("--slow-request-ms", flags.slow_request_ms,
                 "Log calls that take this long or longer, with phases; 0: none")
      ->check(CLI::Range(0, 3600000))
      ->capture_default_str();
  app.add_flag("--reflection,!--no-reflection", flags.reflection,
               "Serve gRPC reflection (default)");
  app.add_option("--log-level", flags.log_level, "debug, info, warning or error")
      ->capture_default_str();
  app.add_option("--log-format", flags.log_format, "text or json")->capture_default_str();
}

absl::Status AddDiskTier(const Flags& flags, ServiceCore& core) {
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
absl::Status AddRedisTier(const Flags& flags, ServiceCore& core) {
  absl::StatusOr<std::optional<RedisTierOptions>> options = MakeRedisTierOptions(flags.redis);
  if (!options.ok()) return options.status();
  if (!options->has_value()) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<SegmentTier>> tier =
      OpenRedisTier(**std::move(options), &core.profiles, &core.namespaces);
  if (!tier.ok()) return tier.status();
  core.tiers.AddTier(*std::move(tier));
  return absl::OkStatus();
}

absl::Status Serve(const Flags& flags) {
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
  options.slow_request = absl::Milliseconds(flags.slow_request_ms);
  options.reflection = flags.reflection;
  options.drain_deadline = absl::Seconds(flags.drain_seconds);
  options.max_receive_message_bytes = 16 << 20;
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
  fourierkv::PrepareServerProcess();
  CLI::App app{"Stores, compresses and serves the KV caches of large language models.",
               "fourierkv-server"};
  fourierkv::Flags flags;
  fourierkv::Declare(app, flags);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = fourierkv::Serve(flags);
  if (!status.ok()) {
    std::fprintf(stderr, "fourierkv-server: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}
