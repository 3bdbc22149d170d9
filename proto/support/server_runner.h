// What every serving program of the project does the same way.

#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/support/live_duration.h"
#include "proto/support/server_security.h"

namespace grpc {
class Service;
}

namespace fourierkv {

struct ServerOptions {
  // host:port, port 0 for any free one, or unix:PATH.
  std::string listen = "127.0.0.1:0";
  // As MakeServerSecurity gives it for `listen`; without it, plaintext on a loopback address.
  ServerSecurity security;
  // host:port of a second port that answers health checks and nothing else, in plaintext and
  // without tokens; empty: none.
  std::string health_listen;
  bool reflection = true;
  // Calls that take this long are logged (call_log.h); zero: none.
  absl::Duration slow_request = absl::ZeroDuration();
  // Instead, if that may change while it serves.
  std::shared_ptr<const LiveDuration> live_slow_request;
  // How long running calls may take to finish after a stop was asked for.
  absl::Duration drain_deadline = absl::Seconds(10);
  int max_receive_message_bytes = 4 << 20;
  // Calls at the same time, each of which has a thread. What comes beyond that is refused by gRPC
  // at once, with RESOURCE_EXHAUSTED, where it would wait for longer than its caller does.
  int max_threads = 512;
  // Called when draining begins and, after the last call, before RunServer returns.
  std::function<void()> on_drain;
  // Called for each SIGHUP, from RunServer's thread, while it serves; those that come meanwhile are
  // one. See PrepareServerProcess.
  std::function<void()> on_reload;
  // Called with the bound address before it is announced.
  std::function<void(const std::string& address)> on_ready;
};

// First thing in main, before any thread starts: SIGINT and SIGTERM end the process until RunServer
// serves and drain it from then on, SIGPIPE is ignored, and freed memory is kept for the next
// message instead of being returned to the kernel (which costs half of the transfer rate). With
// `reloads`, SIGHUP is for ServerOptions::on_reload and never ends the process; one that comes
// before RunServer serves is answered then.
void PrepareServerProcess(bool reloads = false);

// Serves until SIGINT or SIGTERM (see PrepareServerProcess), then turns health off, refuses new
// calls, waits for running ones and cancels what is left at the deadline; a second signal ends the
// process at once. Prints "listening HOST:PORT" on stdout once it serves. Health and, if asked,
// reflection are served beside `services`.
//   Unavailable      an address cannot be bound
//   InvalidArgument  an address is malformed, or open to other machines without `security`
absl::Status RunServer(const ServerOptions& options, const std::vector<grpc::Service*>& services);

// Asks RunServer to drain, as a first signal does, from any thread. Does nothing if it drains
// already; the first signal behind it does not end the process either.
void RequestDrain();

}  // namespace fourierkv
