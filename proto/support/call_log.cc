#include "proto/support/call_log.h"

#include <grpcpp/server_context.h>

#include <utility>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "compute/base/structured_log.h"
#include "proto/support/call_identity.h"

namespace fourierkv {
namespace {

using grpc::experimental::InterceptionHookPoints;

absl::string_view Sent(const grpc::ServerContextBase& context, const char* name) {
  const auto it = context.client_metadata().find(name);
  if (it == context.client_metadata().end()) return {};
  return {it->second.data(), it->second.size()};
}

class CallLog final : public grpc::experimental::Interceptor {
 public:
  CallLog(grpc::experimental::ServerRpcInfo* info, absl::Duration slow)
      : context_(info->server_context()), method_(info->method()), slow_(slow) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_INITIAL_METADATA)) {
      identity_.request_id = RequestIdOf(Sent(*context_, kRequestIdName));
      identity_.traceparent = TraceparentOf(Sent(*context_, kTraceparentName));
      context_->AddInitialMetadata(kRequestIdName, identity_.request_id);
      SetCurrentCall(identity_);  // in the thread that goes on with the handler
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_MESSAGE)) {
      Mark(received_);
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_MESSAGE)) Mark(sent_);
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
      SetCurrentCall({});
      const grpc::Status status = methods->GetSendStatus();
      Finish({static_cast<absl::StatusCode>(status.error_code()), status.error_message()});
    }
    methods->Proceed();
  }

 private:
  void Mark(absl::Duration& phase) const {
    if (phase == absl::ZeroDuration()) phase = absl::Now() - begun_;
  }

  void Finish(const absl::Status& status) const {
    const absl::Duration took = absl::Now() - begun_;
    const bool is_slow =
        slow_ > absl::ZeroDuration() && took >= slow_ && !absl::EndsWith(method_, "/Subscribe");
    const bool ours = absl::IsInternal(status) || absl::IsDataLoss(status);
    LogLevel level = is_slow ? LogLevel::kWarning : LogLevel::kDebug;
    if (!status.ok()) level = ours ? LogLevel::kError : LogLevel::kInfo;
    Log(level, !status.ok() ? "rpc.failed" : (is_slow ? "rpc.slow" : "rpc.done"),
        {{"method", method_},
         {"request_id", identity_.request_id},
         {"traceparent", identity_.traceparent},
         {"peer", context_->peer()},
         {"status", status},
         {"received_ms", absl::ToDoubleMilliseconds(received_)},
         {"first_sent_ms", absl::ToDoubleMilliseconds(sent_)},
         {"ms", absl::ToDoubleMilliseconds(took)}});
  }

  grpc::ServerContextBase* const context_;
  const std::string method_;
  const absl::Duration slow_;
  const absl::Time begun_ = absl::Now();
  CallIdentity identity_;
  absl::Duration received_;  // zero: not yet
  absl::Duration sent_;
};

class CallLogFactory final : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  explicit CallLogFactory(std::shared_ptr<const LiveDuration> slow) : slow_(std::move(slow)) {}

  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    if (absl::StartsWith(info->method(), "/grpc.")) return nullptr;
    return new CallLog(info, slow_->Get());
  }

 private:
  const std::shared_ptr<const LiveDuration> slow_;
};

}  // namespace

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeCallLog(
    std::shared_ptr<const LiveDuration> slow) {
  return std::make_unique<CallLogFactory>(std::move(slow));
}

}  // namespace fourierkv
