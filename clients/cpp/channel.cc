#include "clients/cpp/channel.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <grpcpp/support/client_interceptor.h>

#include <CLI/CLI.hpp>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "proto/support/client_call_log.h"
#include "proto/support/grpc_lifetime.h"
#include "proto/support/loopback.h"
#include "proto/support/raw_call.h"
#include "proto/support/reloaded_file.h"
#include "proto/support/tls_files.h"

namespace fourierkv {
namespace {

using TokenFile = ReloadedFile<std::string>;

absl::StatusOr<std::shared_ptr<TokenFile>> OpenTokenFile(const std::string& path) {
  absl::StatusOr<std::unique_ptr<TokenFile>> file = TokenFile::Open(
      "--token-file", path, [](absl::string_view text) -> absl::StatusOr<std::string> {
        const absl::string_view token = absl::StripAsciiWhitespace(text);
        for (const char c : token) {
          if (!absl::ascii_isgraph(static_cast<unsigned char>(c))) {
            return absl::InvalidArgumentError("holds something else than one token");
          }
        }
        if (token.empty()) return absl::InvalidArgumentError("is empty");
        return std::string(token);
      });
  if (!file.ok()) return file.status();
  return std::shared_ptr<TokenFile>(*std::move(file));
}

// Sends the token with every call. (gRPC's own call credentials refuse loopback addresses without
// TLS.)
class SendToken final : public grpc::experimental::Interceptor {
 public:
  explicit SendToken(TokenFile* token) : token_(token) {}

  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(
            grpc::experimental::InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->emplace("authorization",
                                                 absl::StrCat("Bearer ", *token_->Get()));
    }
    methods->Proceed();
  }

 private:
  TokenFile* token_;
};

class SendTokenFactory final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit SendTokenFactory(std::shared_ptr<TokenFile> token) : token_(std::move(token)) {}

  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo* /*info*/) override {
    return new SendToken(token_.get());
  }

 private:
  std::shared_ptr<TokenFile> token_;
};

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(
    const ChannelOptions& options) {
  if (options.tls_ca.empty()) {
    if (options.tls_cert.empty() && options.tls_key.empty() && options.tls_server_name.empty()) {
      return grpc::InsecureChannelCredentials();
    }
    return absl::InvalidArgumentError(
        "--tls-ca is missing; without it calls go in plaintext, and the other --tls flags mean "
        "nothing");
  }
  const TlsFiles files{
      .certificate = options.tls_cert, .key = options.tls_key, .authorities = options.tls_ca};
  if (absl::Status s = CheckTlsFiles(files); !s.ok()) return s;
  grpc::experimental::TlsChannelCredentialsOptions tls;
  tls.set_certificate_provider(WatchTlsFiles(files));
  tls.watch_root_certs();
  if (!options.tls_cert.empty()) tls.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(tls);
}

// Why a channel does not connect, as gRPC tells it to a call.
std::string WhatIsInTheWay(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(1));
  const grpc::Status status =
      RawUnaryCall(channel, context, "/grpc.health.v1.Health/Check", grpc::ByteBuffer());
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return "";
  return absl::StrCat(" (", status.error_message(), ")");
}

}  // namespace

void DeclareChannelFlags(CLI::App& app, ChannelOptions& options) {
  app.add_option("--tls-ca", options.tls_ca,
                 "Connect with TLS, to servers with a certificate of these authorities (PEM)");
  app.add_option("--tls-cert", options.tls_cert,
                 "Certificate to show to servers that ask for one (PEM)");
  app.add_option("--tls-key", options.tls_key, "Private key of --tls-cert (PEM)");
  app.add_option("--tls-server-name", options.tls_server_name,
                 "Name in the server's certificate; without it the host that is connected to");
  app.add_option("--token-file", options.token_file,
                 "Bearer token (JWT) to send with every call; read again when it changes");
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectChannel(const std::string& address,
                                                              absl::Duration timeout,
                                                              const ChannelOptions& options) {
  KeepGrpcUntilExit();
  absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> credentials = MakeCredentials(options);
  if (!credentials.ok()) return credentials.status();
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  if (!options.token_file.empty()) {
    if (options.tls_ca.empty() && !IsLoopback(address)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--token-file: the token would be readable on the way to ", address,
                       "; give --tls-ca, or use a loopback address"));
    }
    absl::StatusOr<std::shared_ptr<TokenFile>> token = OpenTokenFile(options.token_file);
    if (!token.ok()) return token.status();
    interceptors.push_back(std::make_unique<SendTokenFactory>(*std::move(token)));
  }
  interceptors.push_back(MakeClientCallLog());
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(8 << 20);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // A server that was away for minutes is found again as soon as it is back, not minutes later.
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  // Calls to a server that is gone without a word fail in seconds, not at their deadline.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  if (!options.tls_server_name.empty()) {
    arguments.SetSslTargetNameOverride(options.tls_server_name);
  }
  std::shared_ptr<grpc::Channel> channel = grpc::experimental::CreateCustomChannelWithInterceptors(
      address, *credentials, arguments, std::move(interceptors));
  if (!channel->WaitForConnected(absl::ToChronoTime(absl::Now() + timeout))) {
    return absl::UnavailableError(absl::StrCat(
        "nobody answers at ", address, " within ", absl::FormatDuration(timeout),
        "; is the program running, and is the address right?", WhatIsInTheWay(channel)));
  }
  return channel;
}

}  // namespace fourierkv
