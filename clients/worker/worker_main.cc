#include "clients/worker/worker_main.h"

#include <grpcpp/impl/codegen/service_type.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "compute/base/structured_log.h"
#include "proto/support/server_runner.h"

namespace fourierkv {
namespace {

absl::Status Serve(
    WorkerFlags flags,
    const std::function<std::unique_ptr<grpc::Service>(WorkerRuntime*, int)>& make_service) {
  if (absl::Status s = ConfigureLog(flags.log_level, flags.log_format); !s.ok()) return s;
  absl::StatusOr<ServerSecurity> security = MakeServerSecurity(flags.security, flags.listen);
  if (!security.ok()) return security.status();
  if (!flags.worker.channel.tls_ca.empty()) {  // one identity at both ends
    flags.worker.channel.tls_cert = flags.security.tls_cert;
    flags.worker.channel.tls_key = flags.security.tls_key;
  }
  flags.worker.connect_timeout = absl::Seconds(flags.connect_seconds);
  absl::StatusOr<std::unique_ptr<WorkerRuntime>> runtime = WorkerRuntime::Create(flags.worker);
  if (!runtime.ok()) return runtime.status();
  const std::unique_ptr<grpc::Service> service = make_service(runtime->get(), flags.max_requests);
  ServerOptions options;
  options.listen = flags.listen;
  options.security = *std::move(security);
  options.health_listen = flags.health_listen;
  options.slow_request = absl::Milliseconds(flags.slow_request_ms);
  options.reflection = flags.reflection;
  options.drain_deadline = absl::Seconds(flags.drain_seconds);
  options.max_receive_message_bytes = 16 << 20;
  return RunServer(options, {service.get()});
}

}  // namespace

int WorkerMain(
    int argc, char** argv, const char* program, const char* description,
    const std::function<std::unique_ptr<grpc::Service>(WorkerRuntime*, int)>& make_service) {
  PrepareServerProcess();
  CLI::App app{description, program};
  WorkerFlags flags;
  DeclareWorkerFlags(app, flags, program);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Serve(flags, make_service);
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s: %s\n", program, std::string(status.message()).c_str());
  return 1;
}

}  // namespace fourierkv
