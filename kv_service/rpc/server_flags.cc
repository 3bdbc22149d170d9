#include "kv_service/rpc/server_flags.h"

#include <CLI/CLI.hpp>
#include <cstdlib>

#include "proto/support/flag_checks.h"

namespace fourierkv {
namespace {

void Declare(CLI::App& app, ServerFlags& flags) {
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
  app.add_option("--max-calls", flags.max_calls,
                 "Calls of the store at the same time, working or waiting; others are told to come "
                 "again. Each takes memory (docs/operations.md)")
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

// Throws CLI::ParseError.
ParsedFlags Parse(CLI::App& app, int argc, const char* const* argv) {
  ParsedFlags parsed;
  Declare(app, parsed.flags);
  app.parse(argc, argv);
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() > 0) parsed.settings[option->get_name()] = option->results();
  }
  return parsed;
}

constexpr char kDescription[] =
    "Stores, compresses and serves the KV caches of large language models.";
constexpr char kName[] = "fourierkv-server";

}  // namespace

absl::StatusOr<ParsedFlags> ParseServerFlags(int argc, const char* const* argv) {
  CLI::App app{kDescription, kName};
  try {
    return Parse(app, argc, argv);
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(error.what());
  }
}

ParsedFlags ServerFlagsOrExit(int argc, const char* const* argv) {
  CLI::App app{kDescription, kName};
  try {
    return Parse(app, argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
}

}  // namespace fourierkv
