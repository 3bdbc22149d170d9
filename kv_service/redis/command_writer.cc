#include "kv_service/redis/command_writer.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

constexpr size_t kMaxPiecesAtOnce = 64;  // POSIX promises 16, Linux takes 1024

}  // namespace

CommandWriter::CommandWriter(std::span<const RedisCommand* const> commands) {
  // Framing between two values is one piece; its position is known only once all is written.
  struct Cut {
    size_t end;  // of the framing before the value
    const RedisCommand* command;
  };
  std::vector<Cut> cuts;
  for (const RedisCommand* command : commands) {
    const bool has_value = !command->value.empty();
    absl::StrAppend(&framing_, "*", command->words.size() + (has_value ? 1 : 0), "\r\n");
    for (const std::string& word : command->words) {
      absl::StrAppend(&framing_, "$", word.size(), "\r\n", word, "\r\n");
    }
    if (!has_value) continue;
    size_t size = 0;
    for (const auto piece : command->value) size += piece.size();
    absl::StrAppend(&framing_, "$", size, "\r\n");
    cuts.push_back({framing_.size(), command});
    absl::StrAppend(&framing_, "\r\n");
  }
  size_t begin = 0;
  const auto add = [this](const void* data, size_t size) {
    if (size > 0) pieces_.push_back({const_cast<void*>(data), size});
  };
  for (const Cut& cut : cuts) {
    add(framing_.data() + begin, cut.end - begin);
    for (const auto piece : cut.command->value) add(piece.data(), piece.size());
    begin = cut.end;
  }
  add(framing_.data() + begin, framing_.size() - begin);
}

absl::StatusOr<size_t> CommandWriter::SendSome(int fd) {
  size_t sent = 0;
  while (!done()) {
    msghdr message{};
    message.msg_iov = &pieces_[next_];
    message.msg_iovlen = std::min(pieces_.size() - next_, kMaxPiecesAtOnce);
    const ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return sent;
      return absl::UnavailableError(std::strerror(errno));
    }
    sent += static_cast<size_t>(n);
    for (auto left = static_cast<size_t>(n); left > 0;) {
      iovec& piece = pieces_[next_];
      const size_t taken = std::min(left, piece.iov_len);
      piece.iov_base = static_cast<char*>(piece.iov_base) + taken;
      piece.iov_len -= taken;
      left -= taken;
      if (piece.iov_len == 0) ++next_;
    }
  }
  return sent;
}

}  // namespace fourierkv
