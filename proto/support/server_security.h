// How a serving program protects its port: TLS, client certificates, bearer tokens.

#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "proto/support/access_control.h"
#include "proto/support/tls_files.h"

namespace CLI {
class App;
}
namespace grpc {
class ServerCredentials;
}

namespace fourierkv {

struct ServerSecurityFlags {
  std::string tls_cert;
  std::string tls_key;
  std::string tls_client_ca;
  std::string auth_keys;
  std::string auth_audience;
  bool insecure = false;
};

void DeclareServerSecurityFlags(CLI::App& app, ServerSecurityFlags& flags);

struct ServerSecurity {
  std::shared_ptr<grpc::ServerCredentials> credentials;
  std::shared_ptr<AccessControl> access;  // null: calls need no token
};

// For a server at `listen`. InvalidArgument, naming the flag at fault, for files that cannot be
// used; if plaintext would leave the machine without --insecure; and if tokens would be taken in
// plaintext from other machines, whatever is said.
absl::StatusOr<ServerSecurity> MakeServerSecurity(const ServerSecurityFlags& flags,
                                                  const std::string& listen);

}  // namespace fourierkv
