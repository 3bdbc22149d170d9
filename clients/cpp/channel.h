// Channels to the project's servers: connection, TLS, bearer token.

#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace CLI {
class App;
}

namespace fourierkv {

struct ChannelOptions {
  std::string tls_ca;    // authorities of the server's certificate (PEM); empty: plaintext
  std::string tls_cert;  // certificate of this client, and its key (PEM)
  std::string tls_key;
  std::string tls_server_name;  // in the server's certificate; empty: the host that is dialled
  std::string token_file;       // a bearer token (JWT), sent with every call

  bool operator==(const ChannelOptions&) const = default;
};

// --tls-ca, --tls-cert, --tls-key, --tls-server-name and --token-file.
void DeclareChannelFlags(CLI::App& app, ChannelOptions& options);

// A channel to `address` (HOST:PORT or unix:PATH) that is connected. Files are read again when they
// change: new connections use new certificates, new calls a new token.
//   Unavailable      no connection within `timeout`; the message says what was in the way
//   InvalidArgument  a file cannot be used, or a token would leave the machine in plaintext; the
//                    message names the flag
absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectChannel(const std::string& address,
                                                              absl::Duration timeout,
                                                              const ChannelOptions& options = {});

}  // namespace fourierkv
