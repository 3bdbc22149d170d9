#include "proto/support/client_call_log.h"

#include <grpcpp/client_context.h>

#include <map>
#include <string>

#include "absl/time/clock.h"
#include "compute/base/structured_log.h"
#include "proto/support/call_identity.h"

namespace fourierkv {
namespace {

using grpc::experimental::InterceptionHookPoints;

// What the call has under `name`; if nothing, `ours` from now on.
std::string FindOrAdd(std::multimap<std::string, std::string>& metadata, const char* name,
                      const std::string& ours) {
  if (const auto it = metadata.find(name); it != metadata.end()) return it->second;
  if (!ours.empty()) metadata.emplace(name, ours);
  return ours;
}

class ClientCallLog final : public grpc::experimental::Interceptor {
 public:
  explicit ClientCallLog(const grpc::experimental::ClientRpcInfo* info) : method_(info->method()) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      auto& metadata = *methods->GetSendInitialMetadata();
      const CallIdentity& current = CurrentCall();
      identity_.request_id = FindOrAdd(metadata, kRequestIdName, RequestIdOf(current.request_id));
      identity_.traceparent = FindOrAdd(metadata, kTraceparentName, current.traceparent);
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_STATUS)) {
      const grpc::Status& status = *methods->GetRecvStatus();
      Log(LogLevel::kDebug, status.ok() ? "call.done" : "call.failed",
          {{"method", method_},
           {"request_id", identity_.request_id},
           {"traceparent", identity_.traceparent},
           {"status", absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                                   status.error_message())},
           {"ms", absl::ToDoubleMilliseconds(absl::Now() - begun_)}});
    }
    methods->Proceed();
  }

 private:
  const std::string method_;
  const absl::Time begun_ = absl::Now();
  CallIdentity identity_;
};

class ClientCallLogFactory final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo* info) override {
    return new ClientCallLog(info);
  }
};

}  // namespace

std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface> MakeClientCallLog() {
  return std::make_unique<ClientCallLogFactory>();
}

}  // namespace fourierkv
