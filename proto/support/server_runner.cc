#include "proto/support/server_runner.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <malloc.h>
#include <signal.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "compute/base/structured_log.h"

namespace fourierkv {
namespace {

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

bool IsLoopback(const std::string& listen) {
  return absl::StartsWith(listen, "127.") || absl::StartsWith(listen, "localhost:") ||
         absl::StartsWith(listen, "[::1]:") || absl::StartsWith(listen, "unix:");
}

// The address that clients dial: `listen` with its port replaced by the bound one.
std::string BoundAddress(const std::string& listen, int port) {
  if (absl::StartsWith(listen, "unix:")) return listen;
  return absl::StrCat(listen.substr(0, listen.rfind(':')), ":", port);
}

}  // namespace

void PrepareServerProcess() {
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most that malloc accepts
  const sigset_t stop = StopSignals();
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

absl::Status RunServer(const ServerOptions& options, const std::vector<grpc::Service*>& services) {
  if (!absl::StartsWith(options.listen, "unix:") && options.listen.find(':') == std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listen is '", options.listen, "'; it must be HOST:PORT or unix:PATH"));
  }
  if (!IsLoopback(options.listen)) {
    Log(LogLevel::kWarning, "server.exposed",
        {{"listen", options.listen},
         {"note", "calls are neither encrypted nor authenticated; use a trusted network"}});
  }
  grpc::EnableDefaultHealthCheckService(true);
  if (options.reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = -1;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port);
  // Without this a second server would share the port silently.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(options.max_receive_message_bytes);
  for (grpc::Service* service : services) builder.RegisterService(service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", options.listen,
                     ": the address is in use, malformed or not this machine's; choose another "
                     "with --listen (port 0 takes any free one)"));
  }
  const std::string address = BoundAddress(options.listen, port);
  if (options.on_ready) options.on_ready(address);
  std::printf("listening %s\n", address.c_str());
  std::fflush(stdout);
  Log(LogLevel::kInfo, "server.listening", {{"address", address}});

  const sigset_t stop = StopSignals();
  int signal_number = 0;
  sigwait(&stop, &signal_number);
  Log(LogLevel::kInfo, "server.draining",
      {{"signal", signal_number}, {"deadline_s", absl::ToDoubleSeconds(options.drain_deadline)}});
  server->GetHealthCheckService()->SetServingStatus(false);
  if (options.on_drain) options.on_drain();
  server->Shutdown(std::chrono::system_clock::now() +
                   absl::ToChronoMilliseconds(options.drain_deadline));
  server->Wait();
  Log(LogLevel::kInfo, "server.stopped");
  return absl::OkStatus();
}

}  // namespace fourierkv
