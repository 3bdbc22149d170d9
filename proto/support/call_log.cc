#include "proto/support/call_log.h"

#include <grpcpp/server_context.h>

#include <cstdint>

#include "absl/random/random.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/base/structured_log.h"

namespace fourierkv {
namespace {

using grpc::experimental::InterceptionHookPoints;

constexpr size_t kMostIdBytes = 128;
constexpr char kRequestId[] = "x-request-id";
constexpr char kTraceparent[] = "traceparent";

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
      identity_.request_id = RequestIdOf(Sent(*context_, kRequestId));
      identity_.traceparent = TraceparentOf(Sent(*context_, kTraceparent));
      context_->AddInitialMetadata(kRequestId, identity_.request_id);
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_MESSAGE)) {
      Mark(received_);
    }
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_MESSAGE)) Mark(sent_);
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_STATUS)) {
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
  explicit CallLogFactory(absl::Duration slow) : slow_(slow) {}

  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    if (absl::StartsWith(info->method(), "/grpc.")) return nullptr;
    return new CallLog(info, slow_);
  }

 private:
  const absl::Duration slow_;
};

}  // namespace

std::string RequestIdOf(absl::string_view sent) {
  bool usable = !sent.empty() && sent.size() <= kMostIdBytes;
  for (const char c : sent) {
    usable = usable && (absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
                        absl::StrContains("._-:/+=", absl::string_view(&c, 1)));
  }
  if (usable) return std::string(sent);
  thread_local absl::BitGen random;
  return absl::StrCat(absl::Hex(absl::Uniform<uint64_t>(random), absl::kZeroPad16));
}

std::string TraceparentOf(absl::string_view sent) {
  // 00-<32 hexadecimal digits>-<16>-<2>, in lower case
  constexpr absl::string_view kShape = "00-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx-xxxxxxxxxxxxxxxx-xx";
  if (sent.size() != kShape.size()) return "";
  for (size_t i = 0; i < sent.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(sent[i]);
    const bool hex = absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f');
    if (kShape[i] == 'x' ? !hex : sent[i] != kShape[i]) return "";
  }
  return std::string(sent);
}

std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface> MakeCallLog(
    absl::Duration slow) {
  return std::make_unique<CallLogFactory>(slow);
}

}  // namespace fourierkv
