#include "proto/support/server_runner.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/support/server_interceptor.h>
#include <malloc.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "compute/base/signal_thread.h"
#include "compute/base/structured_log.h"
#include "proto/support/call_log.h"
#include "proto/support/grpc_lifetime.h"

namespace fourierkv {
namespace {

// What the signal thread and RunServer know of each other.
struct SignalState {
  std::mutex mutex;
  std::condition_variable changed;
  bool serving = false;
  bool signalled = false;  // a signal came; RequestDrain is none
  bool reload = false;
  int stop_signal = 0;
};

SignalState& Signals() {
  static SignalState* const state = new SignalState();  // the signal thread outlives statics
  return *state;
}

// A signal asks RunServer to drain; before there is anything to drain, or asked for a second time,
// it ends the process.
void OnSignal(int number) {
  SignalState& signals = Signals();
  std::lock_guard lock(signals.mutex);
  if (number == SIGHUP) {
    signals.reload = true;
    signals.changed.notify_all();
    return;
  }
  if (!signals.serving || signals.signalled) _exit(128 + number);
  signals.signalled = true;
  signals.stop_signal = number;
  signals.changed.notify_all();
}

void DrainOnSignals() {
  SignalState& signals = Signals();
  std::lock_guard lock(signals.mutex);
  signals.serving = true;
}

}  // namespace

void RequestDrain() {
  SignalState& signals = Signals();
  std::lock_guard lock(signals.mutex);
  if (signals.stop_signal == 0) signals.stop_signal = SIGTERM;
  signals.changed.notify_all();
}

namespace {

int WaitForStopSignal(const std::function<void()>& on_reload) {
  SignalState& signals = Signals();
  std::unique_lock lock(signals.mutex);
  while (true) {
    signals.changed.wait(lock, [&] { return signals.stop_signal != 0 || signals.reload; });
    if (signals.stop_signal != 0) return signals.stop_signal;
    signals.reload = false;
    lock.unlock();
    if (on_reload) on_reload();
    lock.lock();
  }
}

// gRPC would take a unix socket away from the server that uses it.
bool IsSocketInUse(const std::string& listen) {
  absl::string_view path = listen;
  if (!absl::ConsumePrefix(&path, "unix:")) return false;
  absl::ConsumePrefix(&path, "//");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return false;
  std::memcpy(address.sun_path, path.data(), path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const bool connected =
      connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  close(fd);
  return connected;
}

// The address that clients dial: `listen` with its port replaced by the bound one.
std::string BoundAddress(const std::string& listen, int port) {
  if (absl::StartsWith(listen, "unix:")) return listen;
  return absl::StrCat(listen.substr(0, listen.rfind(':')), ":", port);
}

// gRPC's library adds reflection to every server of a program that it is linked to. Without
// reflection calls to it are cancelled.
class RefuseReflection final : public grpc::experimental::Interceptor {
 public:
  explicit RefuseReflection(grpc::ServerContextBase* context) : context_(context) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(
            grpc::experimental::InterceptionHookPoints::POST_RECV_INITIAL_METADATA)) {
      context_->TryCancel();
    }
    methods->Proceed();
  }

 private:
  grpc::ServerContextBase* context_;
};

class RefuseReflectionFactory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    if (!absl::StartsWith(info->method(), "/grpc.reflection.")) return nullptr;
    return new RefuseReflection(info->server_context());
  }
};

void DropReflection(grpc::ServerBuilder& builder) {
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> refuse;
  refuse.push_back(std::make_unique<RefuseReflectionFactory>());
  builder.experimental().SetInterceptorCreators(std::move(refuse));
}

// A server of nothing but health checks, for probes that have neither certificate nor token.
class HealthPort {
 public:
  static absl::StatusOr<std::unique_ptr<HealthPort>> Start(const std::string& listen) {
    auto health = std::make_unique<HealthPort>();
    grpc::ServerBuilder builder;
    int port = -1;
    builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.SetMaxReceiveMessageSize(1 << 10);
    DropReflection(builder);
    builder.RegisterCallbackGenericService(&health->nothing_else_);
    health->server_ = builder.BuildAndStart();
    if (health->server_ == nullptr) {
      return absl::UnavailableError(
          absl::StrCat("cannot listen on ", listen,
                       ": the address is in use, malformed or not this machine's; choose another "
                       "with --health-listen"));
    }
    Log(LogLevel::kInfo, "health.listening", {{"address", BoundAddress(listen, port)}});
    return health;
  }

  ~HealthPort() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }

  void SetNotServing() { server_->GetHealthCheckService()->SetServingStatus(false); }

 private:
  grpc::CallbackGenericService nothing_else_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

void PrepareServerProcess(bool reloads) {
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // the most that malloc accepts
  signal(SIGPIPE, SIG_IGN);
  // Debian's Abseil is a debug build: each lock of gRPC would be looked up in one graph of all.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  // What gRPC would write to stderr comes back as a status, which says it once and readably.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  if (reloads) {
    HandleSignals({SIGINT, SIGTERM, SIGHUP}, OnSignal);
  } else {
    HandleSignals({SIGINT, SIGTERM}, OnSignal);
  }
}

absl::Status RunServer(const ServerOptions& options, const std::vector<grpc::Service*>& services) {
  if (!absl::StartsWith(options.listen, "unix:") && options.listen.find(':') == std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("--listen is '", options.listen, "'; it must be HOST:PORT or unix:PATH"));
  }
  std::shared_ptr<grpc::ServerCredentials> credentials = options.security.credentials;
  if (credentials == nullptr) {
    absl::StatusOr<ServerSecurity> plain = MakeServerSecurity({}, options.listen);
    if (!plain.ok()) return plain.status();
    credentials = plain->credentials;
  }
  KeepGrpcUntilExit();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> watchers;
  watchers.push_back(MakeCallLog(options.live_slow_request != nullptr
                                     ? options.live_slow_request
                                     : std::make_shared<const LiveDuration>(options.slow_request)));
  if (options.reflection) {
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  } else {
    watchers.push_back(std::make_unique<RefuseReflectionFactory>());
  }
  builder.experimental().SetInterceptorCreators(std::move(watchers));
  int port = -1;
  builder.AddListeningPort(options.listen, credentials, &port);
  // Without this a second server would share the port silently.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(options.max_receive_message_bytes);
  // A client whose machine is gone must not hold its call, and the memory behind it, for hours.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // Clients ask in the same way whether the server is still there.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  grpc::ResourceQuota quota("calls");
  quota.SetMaxThreads(options.max_threads);
  builder.SetResourceQuota(quota);
  // A thread that has ended a call takes the next one: to start a thread for each costs more than
  // many calls do, and while there is too much to do, new calls would wait for that.
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MIN_POLLERS, 2);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 16);
  for (grpc::Service* service : services) builder.RegisterService(service);
  const std::unique_ptr<grpc::Server> server =
      IsSocketInUse(options.listen) ? nullptr : builder.BuildAndStart();
  if (server == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", options.listen,
                     ": the address is in use, malformed or not this machine's; choose another "
                     "with --listen (port 0 takes any free one)"));
  }
  std::unique_ptr<HealthPort> health;
  if (!options.health_listen.empty()) {
    absl::StatusOr<std::unique_ptr<HealthPort>> started = HealthPort::Start(options.health_listen);
    if (!started.ok()) return started.status();
    health = *std::move(started);
  }
  DrainOnSignals();
  const std::string address = BoundAddress(options.listen, port);
  if (options.on_ready) options.on_ready(address);
  std::printf("listening %s\n", address.c_str());
  std::fflush(stdout);
  Log(LogLevel::kInfo, "server.listening", {{"address", address}});

  const int signal_number = WaitForStopSignal(options.on_reload);
  Log(LogLevel::kInfo, "server.draining",
      {{"signal", signal_number}, {"deadline_s", absl::ToDoubleSeconds(options.drain_deadline)}});
  server->GetHealthCheckService()->SetServingStatus(false);
  if (health != nullptr) health->SetNotServing();
  if (options.on_drain) options.on_drain();
  server->Shutdown(std::chrono::system_clock::now() +
                   absl::ToChronoMilliseconds(options.drain_deadline));
  server->Wait();
  Log(LogLevel::kInfo, "server.stopped");
  return absl::OkStatus();
}

}  // namespace fourierkv
