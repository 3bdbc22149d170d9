#include "clients/worker/worker_flags.h"

#include <CLI/CLI.hpp>

#include "proto/support/flag_checks.h"

namespace fourierkv {

void DeclareWorkerFlags(CLI::App& app, WorkerFlags& flags, const std::string& program) {
  app.set_version_flag("--version", program + " " + FOURIERKV_VERSION);
  app.set_config("--config", "", "Read flags from a TOML or INI file; the command line wins");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.add_option("--listen", flags.listen, "HOST:PORT (port 0: any free one) or unix:PATH")
      ->capture_default_str();
  app.add_option("--server", flags.worker.server, "Address of fourierkv-server")->required();
  app.add_option("--connect-timeout", flags.connect_seconds,
                 "Seconds to wait for fourierkv-server to answer at the start")
      ->check(SecondsBetween(0, 3600))
      ->capture_default_str();
  app.add_option("--model", flags.worker.model_dir,
                 "Folder with config.json and safetensors of a Llama-architecture model")
      ->required();
  app.add_option("--model-id", flags.worker.model_id,
                 "Name of the model in cache keys; without it the folder's name");
  app.add_option("--profile", flags.worker.profile,
                 "Codec profile: a file, or 'default'; without it the model folder's "
                 "codec_profile.json if there is one, else the default");
  app.add_option("--tenant-salt", flags.worker.tenant_salt,
                 "Keeps this worker's segments apart from those with another salt");
  app.add_option("--recent-window", flags.worker.recent_window,
                 "Tokens before the end of a sequence that stay exact")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--max-requests", flags.max_requests, "Requests worked on at the same time")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--device", flags.worker.device, "Compute backend")->capture_default_str();
  app.add_option("--kv-memory", flags.worker.kv_memory,
                 "Memory of the GPU for KV caches, as 512MB or 40GB; 0: two fifths of what is free")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->capture_default_str();
  app.add_option("--threads", flags.worker.threads, "Compute threads; 0: one per hardware thread")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--drain-seconds", flags.drain_seconds,
                 "How long running calls may take to finish after SIGTERM")
      ->check(SecondsBetween(0, 3600))
      ->capture_default_str();
  DeclareServerSecurityFlags(app, flags.security);
  app.add_option("--tls-ca", flags.worker.channel.tls_ca,
                 "Connect to fourierkv-server with TLS; its certificate is of these authorities "
                 "(PEM). --tls-cert is shown to it if it asks");
  app.add_option("--tls-server-name", flags.worker.channel.tls_server_name,
                 "Name in fourierkv-server's certificate; without it the host in --server");
  app.add_option("--token-file", flags.worker.channel.token_file,
                 "Bearer token (JWT) for fourierkv-server; read again when it changes");
  app.add_option("--health-listen", flags.health_listen,
                 "HOST:PORT for health checks alone, in plaintext and without tokens, for probes");
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

}  // namespace fourierkv
