#include "proto/support/server_security.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <CLI/CLI.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "compute/base/structured_log.h"
#include "proto/support/loopback.h"

namespace fourierkv {
namespace {

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> TlsCredentials(
    const ServerSecurityFlags& flags) {
  const TlsFiles files{.certificate = flags.tls_cert,
                       .key = flags.tls_key,
                       .authorities = flags.tls_client_ca,
                       .authorities_flag = "--tls-client-ca"};
  if (absl::Status s = CheckTlsFiles(files); !s.ok()) return s;
  grpc::experimental::TlsServerCredentialsOptions options(WatchTlsFiles(files));
  options.watch_identity_key_cert_pairs();
  if (flags.tls_client_ca.empty()) {
    options.set_cert_request_type(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  } else {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  return grpc::experimental::TlsServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> PlaintextCredentials(
    const ServerSecurityFlags& flags, const std::string& listen) {
  if (!flags.tls_client_ca.empty()) {
    return absl::InvalidArgumentError(
        "--tls-client-ca needs TLS; give --tls-cert and --tls-key, too");
  }
  if (flags.auth_keys.empty()) {
    if (!IsLoopback(listen)) {
      if (!flags.insecure) {
        return absl::InvalidArgumentError(
            absl::StrCat("--listen ", listen,
                         " is open to other machines: give --tls-cert and --tls-key, or "
                         "--insecure for plaintext in a network that you trust"));
      }
      Log(LogLevel::kWarning, "server.exposed",
          {{"listen", listen},
           {"note", "calls are neither encrypted nor authenticated; use a trusted network"}});
    }
    return grpc::InsecureServerCredentials();
  }
  // gRPC judges tokens only where it knows its peer: of plaintext, on this machine.
  if (absl::StartsWith(listen, "unix:")) return grpc::experimental::LocalServerCredentials(UDS);
  if (absl::StartsWith(listen, "127.0.0.1:") || absl::StartsWith(listen, "localhost:") ||
      absl::StartsWith(listen, "[::1]:")) {
    return grpc::experimental::LocalServerCredentials(LOCAL_TCP);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--auth-keys: tokens would be readable on the way to ", listen,
                   ": give --tls-cert and --tls-key, or listen on 127.0.0.1, [::1] or unix:PATH"));
}

}  // namespace

void DeclareServerSecurityFlags(CLI::App& app, ServerSecurityFlags& flags) {
  app.add_option(
      "--tls-cert", flags.tls_cert,
      "Serve TLS with this certificate (PEM, with intermediate ones); read again when it "
      "changes");
  app.add_option("--tls-key", flags.tls_key, "Private key of --tls-cert (PEM)");
  app.add_option("--tls-client-ca", flags.tls_client_ca,
                 "Serve only clients with a certificate of these authorities (PEM)");
  app.add_option(
      "--auth-keys", flags.auth_keys,
      "Serve only calls with a bearer token (JWT) signed by one of these keys: a JSON Web "
      "Key Set or PEM public keys; read again when it changes");
  app.add_option("--auth-audience", flags.auth_audience,
                 "What the 'aud' of tokens must be or contain; required with --auth-keys");
  app.add_flag("--insecure", flags.insecure,
               "Serve plaintext to other machines; without it, only on loopback addresses");
}

absl::StatusOr<ServerSecurity> MakeServerSecurity(const ServerSecurityFlags& flags,
                                                  const std::string& listen) {
  if (flags.auth_keys.empty() && !flags.auth_audience.empty()) {
    return absl::InvalidArgumentError("--auth-audience needs --auth-keys");
  }
  const bool tls = !flags.tls_cert.empty() || !flags.tls_key.empty();
  auto credentials = tls ? TlsCredentials(flags) : PlaintextCredentials(flags, listen);
  if (!credentials.ok()) return credentials.status();
  ServerSecurity security{.credentials = *std::move(credentials), .access = nullptr};
  if (!flags.auth_keys.empty()) {
    auto access = AccessControl::Create(flags.auth_keys, flags.auth_audience);
    if (!access.ok()) return access.status();
    security.access = *std::move(access);
    security.credentials->SetAuthMetadataProcessor(security.access);
  }
  return security;
}

}  // namespace fourierkv
