#include "kv_service/rpc/text_http_server.h"

#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace fourierkv {
namespace {

constexpr int kThreads = 2;
constexpr size_t kMaxRequestBytes = 8 << 10;
constexpr absl::Duration kPatience = absl::Seconds(5);  // with one client

// Waits until `fd` is ready for `events`; false at the deadline or once `wake_fd` is readable.
bool WaitFor(int fd, short events, int wake_fd, absl::Time deadline) {
  pollfd fds[2] = {{fd, events, 0}, {wake_fd, POLLIN, 0}};
  for (;;) {
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return false;
    const int timeout =
        left > absl::Hours(1) ? -1 : static_cast<int>(absl::ToInt64Milliseconds(left)) + 1;
    const int ready = poll(fds, 2, timeout);
    if (ready < 0 && errno != EINTR) return false;
    if (ready > 0) return fds[1].revents == 0;
  }
}

// Everything up to the empty line that ends the head of a request; "" if that does not come.
std::string ReadHead(int fd, int wake_fd, absl::Time deadline) {
  std::string head;
  char buffer[1024];
  while (head.size() < kMaxRequestBytes && WaitFor(fd, POLLIN, wake_fd, deadline)) {
    const ssize_t n = recv(fd, buffer, sizeof buffer, 0);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) break;
    head.append(buffer, static_cast<size_t>(n));
    if (head.find("\r\n\r\n") != std::string::npos) return head;
  }
  return "";
}

void WriteAll(int fd, absl::string_view text, int wake_fd, absl::Time deadline) {
  while (!text.empty() && WaitFor(fd, POLLOUT, wake_fd, deadline)) {
    const ssize_t n = send(fd, text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (n <= 0) return;
    text.remove_prefix(static_cast<size_t>(n));
  }
}

std::string Response(const char* status, const std::string& content_type, const std::string& body,
                     bool with_body) {
  return absl::StrCat("HTTP/1.1 ", status, "\r\nContent-Type: ", content_type,
                      "\r\nContent-Length: ", body.size(), "\r\nConnection: close\r\n\r\n",
                      with_body ? body : "");
}

int BoundPort(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

// A listening socket, or -1 with errno.
int Bind(const addrinfo& to) {
  const int fd = socket(to.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  const int one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, to.ai_addr, to.ai_addrlen) == 0 && listen(fd, 16) == 0) return fd;
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TextHttpServer>> TextHttpServer::Start(
    const std::string& listen, const std::string& path, const std::string& content_type,
    std::function<std::string()> make_text) {
  const size_t colon = listen.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == listen.size()) {
    return absl::InvalidArgumentError(absl::StrCat("'", listen, "' is not HOST:PORT"));
  }
  std::string host = listen.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), listen.c_str() + colon + 1, &hints, &found);
      error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", listen, "' is no address of this machine: ", gai_strerror(error)));
  }
  const int fd = Bind(*found);
  const int error = errno;
  freeaddrinfo(found);
  if (fd < 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", listen, ": ", strerror(error)));
  }
  std::unique_ptr<TextHttpServer> server(new TextHttpServer());
  server->address_ = absl::StrCat(listen.substr(0, colon), ":", BoundPort(fd));
  server->path_ = path;
  server->content_type_ = content_type;
  server->make_text_ = std::move(make_text);
  server->listen_fd_ = fd;
  server->wake_fd_ = eventfd(0, EFD_CLOEXEC);
  if (server->wake_fd_ < 0) {
    return absl::UnavailableError(absl::StrCat("cannot make an eventfd: ", strerror(errno)));
  }
  for (int i = 0; i < kThreads; ++i) {
    server->threads_.emplace_back([s = server.get()] { s->Serve(); });
  }
  return server;
}

TextHttpServer::~TextHttpServer() {
  if (wake_fd_ >= 0) eventfd_write(wake_fd_, 1);
  for (std::thread& thread : threads_) thread.join();
  if (wake_fd_ >= 0) close(wake_fd_);
  close(listen_fd_);
}

void TextHttpServer::Serve() {
  while (WaitFor(listen_fd_, POLLIN, wake_fd_, absl::InfiniteFuture())) {
    const int fd = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) {
      // Another thread took it, or descriptors are short for a while.
      if (errno == EMFILE || errno == ENFILE) absl::SleepFor(absl::Milliseconds(100));
      continue;
    }
    const absl::Time deadline = absl::Now() + kPatience;
    const std::string head = ReadHead(fd, wake_fd_, deadline);
    WriteAll(fd, Answer(head), wake_fd_, deadline);
    shutdown(fd, SHUT_WR);
    close(fd);
  }
}

std::string TextHttpServer::Answer(const std::string& request) const {
  const std::string plain = "text/plain; charset=utf-8";
  const std::vector<absl::string_view> words =
      absl::StrSplit(absl::string_view(request).substr(0, request.find("\r\n")), ' ');
  if (words.size() != 3 || words[2].substr(0, 7) != "HTTP/1.") {
    return Response("400 Bad Request", plain, "not an HTTP/1 request\n", true);
  }
  const bool head = words[0] == "HEAD";
  if (words[1].substr(0, words[1].find('?')) != path_) {
    return Response("404 Not Found", plain, absl::StrCat("only ", path_, " is here\n"), !head);
  }
  if (!head && words[0] != "GET") {
    return Response("405 Method Not Allowed\r\nAllow: GET, HEAD", plain, "use GET\n", true);
  }
  return Response("200 OK", content_type_, make_text_(), !head);
}

}  // namespace fourierkv
