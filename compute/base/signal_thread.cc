#include "compute/base/signal_thread.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <thread>
#include <utility>

namespace fourierkv {
namespace {

int pipe_fds[2];

// Only what is allowed in a signal handler.
void PassOn(int number) {
  const int saved = errno;
  const auto byte = static_cast<unsigned char>(number);
  [[maybe_unused]] const ssize_t written = write(pipe_fds[1], &byte, 1);
  errno = saved;
}

}  // namespace

void HandleSignals(std::initializer_list<int> numbers, std::function<void(int number)> handle) {
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) std::abort();
  std::thread([handle = std::move(handle)] {
    unsigned char byte = 0;
    for (;;) {
      const ssize_t n = read(pipe_fds[0], &byte, 1);
      if (n == 1) handle(byte);
      if (n < 0 && errno != EINTR) return;
    }
  }).detach();
  struct sigaction action {};
  action.sa_handler = PassOn;
  action.sa_flags = SA_RESTART;
  for (const int number : numbers) sigaction(number, &action, nullptr);
}

}  // namespace fourierkv
