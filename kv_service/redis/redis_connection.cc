#include "kv_service/redis/redis_connection.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kv_service/redis/command_writer.h"
#include "kv_service/redis/reply_status.h"

namespace fourierkv {
namespace {

constexpr size_t kReadBytes = 256 << 10;

// Waits until `fd` is ready for one of `events` or `until`; false at that time.
bool WaitReady(int fd, short events, absl::Time until) {
  for (;;) {
    const absl::Duration left = until - absl::Now();
    // Rounded up, so that the last millisecond is not spent spinning.
    const int64_t ms =
        std::clamp<int64_t>(absl::ToInt64Milliseconds(left + absl::Microseconds(999)), 0, 60'000);
    pollfd entry{fd, events, 0};
    const int n = poll(&entry, 1, static_cast<int>(ms));
    if (n > 0) return true;
    if (left <= absl::ZeroDuration()) return false;
  }
}

absl::Status At(const NodeAddress& address, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat("Redis node ", address.ToString(), ": ", status.message()));
}

// A socket that is connected, or an error.
absl::StatusOr<int> ConnectSocket(const SocketAddress& to, absl::Time until) {
  const auto* where = reinterpret_cast<const sockaddr*>(&to.storage);
  const int fd = socket(where->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return absl::UnavailableError(absl::StrCat("no socket: ", std::strerror(errno)));
  int error = connect(fd, where, to.size) == 0 ? 0 : errno;
  if (error == EINPROGRESS) {
    socklen_t size = sizeof error;
    if (!WaitReady(fd, POLLOUT, until)) {
      error = ETIMEDOUT;
    } else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
      error = errno;
    }
  }
  if (error != 0) {
    close(fd);
    return absl::UnavailableError(absl::StrCat("cannot connect: ", std::strerror(error)));
  }
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
  return fd;
}

}  // namespace

RedisConnection::RedisConnection(const NodeAddress& address, const RedisConnectionOptions& options,
                                 int fd)
    : address_(address),
      stall_timeout_(options.stall_timeout),
      fd_(fd),
      parser_(options.max_reply_bytes),
      buffer_(new char[kReadBytes]) {}

RedisConnection::~RedisConnection() { close(fd_); }

absl::StatusOr<std::unique_ptr<RedisConnection>> RedisConnection::Connect(
    const NodeAddress& address, const RedisConnectionOptions& options, absl::Time deadline) {
  const absl::Time until = std::min(deadline, absl::Now() + options.connect_timeout);
  absl::StatusOr<std::unique_ptr<RedisConnection>> connection =
      ConnectBefore(address, options, until);
  if (connection.ok()) return connection;
  // Whose time was up decides whether the node is to blame.
  const bool late = absl::Now() >= deadline;
  if (late && absl::IsUnavailable(connection.status())) {
    return absl::DeadlineExceededError(connection.status().message());
  }
  if (!late && absl::IsDeadlineExceeded(connection.status())) {
    return absl::UnavailableError(connection.status().message());
  }
  return connection;
}

absl::StatusOr<std::unique_ptr<RedisConnection>> RedisConnection::ConnectBefore(
    const NodeAddress& address, const RedisConnectionOptions& options, absl::Time until) {
  absl::StatusOr<std::vector<SocketAddress>> found = Resolve(address, until);
  if (!found.ok()) return found.status();
  absl::Status last = absl::OkStatus();
  for (const SocketAddress& to : *found) {
    const absl::StatusOr<int> fd = ConnectSocket(to, until);
    if (!fd.ok()) {
      last = At(address, fd.status());
      continue;
    }
    std::unique_ptr<RedisConnection> connection(new RedisConnection(address, options, *fd));
    if (absl::Status s = connection->Authenticate(options, until); !s.ok()) return s;
    return connection;
  }
  return last;
}

absl::Status RedisConnection::Authenticate(const RedisConnectionOptions& options,
                                           absl::Time until) {
  if (options.password == nullptr) return absl::OkStatus();
  absl::StatusOr<std::string> password = options.password();
  if (!password.ok()) return password.status();
  RedisCommand auth;
  auth.words = {"AUTH"};
  if (!options.username.empty()) auth.words.push_back(options.username);
  auth.words.push_back(*std::move(password));
  const RedisCommand* const commands[] = {&auth};
  absl::StatusOr<std::vector<RedisReply>> replies = Call(commands, until);
  if (!replies.ok()) return replies.status();
  if (!replies->front().IsError()) return absl::OkStatus();
  return At(address_, StatusOfErrorReply(replies->front().text));
}

bool RedisConnection::IsQuiet() const {
  pollfd entry{fd_, POLLIN, 0};
  return poll(&entry, 1, 0) == 0;
}

absl::StatusOr<std::vector<RedisReply>> RedisConnection::Call(
    std::span<const RedisCommand* const> commands, absl::Time deadline) {
  CommandWriter writer(commands);
  std::vector<RedisReply> replies;
  replies.reserve(commands.size());
  heard_ = false;
  absl::Time last_progress = absl::Now();
  while (!writer.done() || replies.size() < commands.size()) {
    bool progress = false;
    if (!writer.done()) {
      const absl::StatusOr<size_t> sent = writer.SendSome(fd_);
      if (!sent.ok()) return At(address_, sent.status());
      progress = *sent > 0;
    }
    if (absl::Status s = ReadReplies(&replies, commands.size(), &progress); !s.ok()) {
      return At(address_, s);
    }
    const absl::Time now = absl::Now();
    if (progress) last_progress = now;
    if (writer.done() && replies.size() == commands.size()) break;
    if (now >= deadline) {
      return At(address_, absl::DeadlineExceededError("no answer before the deadline"));
    }
    if (progress) continue;
    const absl::Time stalled = last_progress + stall_timeout_;
    const auto events = static_cast<short>(writer.done() ? POLLIN : POLLIN | POLLOUT);
    if (!WaitReady(fd_, events, std::min(deadline, stalled)) && stalled <= deadline) {
      return At(address_,
                absl::UnavailableError(absl::StrCat("neither took nor gave a byte for ",
                                                    absl::FormatDuration(stall_timeout_))));
    }
  }
  if (parser_.HasLeftovers()) {
    return At(address_, absl::InternalError("gave more replies than there were commands"));
  }
  return replies;
}

absl::Status RedisConnection::ReadReplies(std::vector<RedisReply>* replies, size_t expected,
                                          bool* progress) {
  const ssize_t n = recv(fd_, buffer_.get(), kReadBytes, MSG_DONTWAIT);
  if (n == 0) return absl::UnavailableError("closed the connection");
  if (n < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return absl::OkStatus();
    return absl::UnavailableError(std::strerror(errno));
  }
  *progress = true;
  heard_ = true;
  absl::Status fed = parser_.Feed(absl::string_view(buffer_.get(), static_cast<size_t>(n)));
  if (!fed.ok()) return fed;
  while (replies->size() < expected) {
    absl::StatusOr<std::optional<RedisReply>> reply = parser_.Next();
    if (!reply.ok()) return reply.status();
    if (!reply->has_value()) break;
    replies->push_back(**std::move(reply));
  }
  return absl::OkStatus();
}

}  // namespace fourierkv
