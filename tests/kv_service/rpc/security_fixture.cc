#include "tests/kv_service/rpc/security_fixture.h"

#include <grpcpp/grpcpp.h>

#include <cstdlib>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/support/raw_call.h"

namespace fourierkv {

std::string CredentialFolder::Write(const std::string& name, const std::string& content) const {
  folder_.Write(name + ".new", content);
  std::filesystem::rename(Path(name + ".new"), Path(name));
  return Path(name);
}

void CredentialFolder::Write(const std::string& name, const IssuedCertificate& issued) const {
  Write(name + ".key", issued.key);
  Write(name + ".crt", issued.certificate);
}

SecureServer::SecureServer(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {"--listen", "127.0.0.1:0", "--metrics", "", "--threads", "1",
                                       "--drain-seconds", "0.1"});
  process_ = std::make_unique<Subprocess>("fourierkv-server", arguments);
  address_ = process_->WaitForAddress();
  if (address_.empty()) {
    std::fputs(process_->err().c_str(), stderr);
    std::abort();
  }
}

std::string SecureServer::HealthAddress() {
  const std::string event = "health.listening address=";
  if (!process_->WaitForError(event)) std::abort();
  const std::string log = process_->err();
  const size_t begin = log.find(event) + event.size();
  return log.substr(begin, log.find('\n', begin) - begin);
}

absl::Status ReadCall(const std::string& address, const ChannelOptions& options,
                      absl::Duration timeout) {
  const auto client = KvClient::Connect(address, timeout, options);
  if (!client.ok()) return client.status();
  return (*client)->Exists({Digest()}, absl::Now() + absl::Seconds(10)).status();
}

grpc::Status PlainCall(const std::string& address, const std::string& method,
                       const std::string& authorization, const std::string& message) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(10)));
  if (!authorization.empty()) context.AddMetadata("authorization", authorization);
  const grpc::Slice bytes(message);
  return RawUnaryCall(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()), context,
                      method, grpc::ByteBuffer(&bytes, 1));
}

bool Eventually(const std::function<bool()>& attempt) {
  const absl::Time limit = absl::Now() + absl::Seconds(30);
  while (!attempt()) {
    if (absl::Now() > limit) return false;
    absl::SleepFor(absl::Milliseconds(50));
  }
  return true;
}

}  // namespace fourierkv
