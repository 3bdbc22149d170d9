#include "kv_service/rpc/text_http_server.h"

#include <httplib.h>
#include <sys/socket.h>

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace fourierkv {
namespace {

constexpr int kThreads = 2;
constexpr int kPatienceSeconds = 2;  // with one client
constexpr size_t kMaxBodyBytes = 1 << 10;

}  // namespace

absl::StatusOr<std::unique_ptr<TextHttpServer>> TextHttpServer::Start(
    const std::string& listen, const std::string& path, const std::string& content_type,
    std::function<std::string()> make_text) {
  const size_t colon = listen.rfind(':');
  int port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(listen.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("'", listen, "' is not HOST:PORT"));
  }
  std::string host = listen.substr(0, colon);
  const std::string shown_host = host;
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  auto server = std::make_unique<httplib::Server>();
  server->new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
  server->set_read_timeout(kPatienceSeconds);
  server->set_write_timeout(kPatienceSeconds);
  server->set_keep_alive_max_count(1);
  server->set_payload_max_length(kMaxBodyBytes);
  // The library's default would let a second server share the port silently.
  server->set_socket_options([](int socket) {
    const int one = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  });
  server->Get(path, [content_type, make_text = std::move(make_text)](const httplib::Request&,
                                                                     httplib::Response& response) {
    response.set_content(make_text(), content_type);
  });
  if (port == 0) {
    port = server->bind_to_any_port(host);
  } else if (!server->bind_to_port(host, port)) {
    port = -1;
  }
  if (port < 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", listen, ": in use, or not an address of this machine"));
  }
  return std::unique_ptr<TextHttpServer>(
      new TextHttpServer(std::move(server), absl::StrCat(shown_host, ":", port)));
}

TextHttpServer::TextHttpServer(std::unique_ptr<httplib::Server> server, std::string address)
    : server_(std::move(server)), address_(std::move(address)), thread_([this] {
        server_->listen_after_bind();
        ended_ = true;
      }) {}

TextHttpServer::~TextHttpServer() {
  // A stop before the loop has begun would be lost.
  while (!server_->is_running() && !ended_) absl::SleepFor(absl::Milliseconds(1));
  server_->stop();
  thread_.join();
}

}  // namespace fourierkv
