#include "tests/kv_service/redis/fake_node.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

// Takes a whole command off the front of `bytes`, if there is one.
std::optional<FakeNode::Words> TakeCommand(std::string& bytes) {
  size_t at = 0;
  const auto number = [&](char mark) {
    const size_t end = bytes.find("\r\n", at);
    int value = -1;
    if (end == std::string::npos || bytes[at] != mark) return -1;
    if (!absl::SimpleAtoi(bytes.substr(at + 1, end - at - 1), &value)) std::abort();
    at = end + 2;
    return value;
  };
  const int count = number('*');
  if (count < 0) return std::nullopt;
  FakeNode::Words words;
  for (int i = 0; i < count; ++i) {
    if (at >= bytes.size()) return std::nullopt;
    const int size = number('$');
    if (size < 0 || bytes.size() < at + static_cast<size_t>(size) + 2) return std::nullopt;
    words.push_back(bytes.substr(at, static_cast<size_t>(size)));
    at += static_cast<size_t>(size) + 2;
  }
  bytes.erase(0, at);
  return words;
}

}  // namespace

FakeNode::FakeNode(Answer answer) : answer_(std::move(answer)) {
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in any{};
  any.sin_family = AF_INET;
  any.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof any;
  if (bind(listener_, reinterpret_cast<sockaddr*>(&any), size) != 0 || listen(listener_, 64) != 0 ||
      getsockname(listener_, reinterpret_cast<sockaddr*>(&any), &size) != 0) {
    std::abort();
  }
  address_ = {"127.0.0.1", ntohs(any.sin_port)};
  acceptor_ = std::thread([this] { Accept(); });
}

FakeNode::~FakeNode() {
  stopping_ = true;
  shutdown(listener_, SHUT_RDWR);
  acceptor_.join();
  close(listener_);
  {
    const std::lock_guard lock(mutex_);
    for (const int fd : sockets_) shutdown(fd, SHUT_RDWR);
  }
  for (std::thread& thread : threads_) thread.join();
  for (const int fd : sockets_) close(fd);
}

std::vector<FakeNode::Words> FakeNode::commands() const {
  const std::lock_guard lock(mutex_);
  return commands_;
}

void FakeNode::Accept() {
  for (;;) {
    const int fd = accept(listener_, nullptr, nullptr);
    if (stopping_ || fd < 0) {
      if (fd >= 0) close(fd);
      return;
    }
    ++connections_;
    const std::lock_guard lock(mutex_);
    sockets_.push_back(fd);
    threads_.emplace_back([this, fd] { Serve(fd); });
  }
}

void FakeNode::Serve(int fd) {
  std::string received;
  char buffer[65536];
  for (ssize_t n; (n = recv(fd, buffer, sizeof buffer, 0)) > 0;) {
    received.append(buffer, static_cast<size_t>(n));
    while (auto command = TakeCommand(received)) {
      {
        const std::lock_guard lock(mutex_);
        commands_.push_back(*command);
      }
      const std::string answer = answer_(*command);
      if (answer == kHangUp) {
        shutdown(fd, SHUT_RDWR);
        return;
      }
      for (size_t sent = 0; sent < answer.size();) {
        const ssize_t m = send(fd, answer.data() + sent, answer.size() - sent, MSG_NOSIGNAL);
        if (m <= 0) return;
        sent += static_cast<size_t>(m);
      }
    }
  }
}

std::string Bulk(const std::string& text) {
  return absl::StrCat("$", text.size(), "\r\n", text, "\r\n");
}

std::string AllSlotsAt(const NodeAddress& node) {
  return absl::StrCat("*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n", Bulk(node.host), ":", node.port, "\r\n",
                      Bulk("0123456789012345678901234567890123456789"));
}

}  // namespace fourierkv
