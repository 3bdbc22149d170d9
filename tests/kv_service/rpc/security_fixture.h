// A server program with certificates and keys of its own, and clients of it.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "clients/cpp/kv_client.h"
#include "proto/support/grpc_status.h"
#include "tests/clients/subprocess.h"
#include "tests/proto/support/test_credentials.h"

namespace fourierkv {

// A folder of files with credentials.
class CredentialFolder {
 public:
  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }
  // Replaces the file in one step, as tools that rotate credentials do.
  std::string Write(const std::string& name, const std::string& content) const;
  // NAME.crt and NAME.key.
  void Write(const std::string& name, const IssuedCertificate& issued) const;

 private:
  TempFolder folder_;
};

// A server that runs with `--listen 127.0.0.1:0` and these arguments. Aborts the test program if it
// does not start.
class SecureServer {
 public:
  explicit SecureServer(std::vector<std::string> arguments);
  const std::string& address() const { return address_; }
  Subprocess& process() { return *process_; }
  // HOST:PORT of the health port, from the log.
  std::string HealthAddress();

 private:
  std::unique_ptr<Subprocess> process_;
  std::string address_;
};

// Makes one call that needs the role read.
absl::Status ReadCall(const std::string& address, const ChannelOptions& options,
                      absl::Duration timeout = absl::Seconds(10));

// One unary call with an encoded request, and a token if one is given, in plaintext.
grpc::Status PlainCall(const std::string& address, const std::string& method,
                       const std::string& authorization = "", const std::string& message = "");

// Calls `attempt` until it returns true; false if that takes too long.
bool Eventually(const std::function<bool()>& attempt);

}  // namespace fourierkv
