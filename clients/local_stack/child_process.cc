#include "clients/local_stack/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"

namespace fourierkv {
namespace {

constexpr size_t kLogTail = 2000;

std::string EndOfFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  const std::string whole = text.str();
  return whole.size() <= kLogTail ? whole : whole.substr(whole.size() - kLogTail);
}

// Only async-signal-safe calls: the parent may have threads.
[[noreturn]] void ExecuteChild(char* const* argv, int stdout_fd, int log_fd, pid_t parent) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(127);  // the parent died before prctl
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  dup2(stdout_fd, STDOUT_FILENO);
  dup2(log_fd, STDERR_FILENO);
  execv(argv[0], argv);
  _exit(127);
}

}  // namespace

absl::StatusOr<ChildProcess> ChildProcess::Start(const std::string& program,
                                                 const std::vector<std::string>& arguments,
                                                 const std::string& log_path) {
  if (access(program.c_str(), X_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat("cannot execute ", program, ": ", std::strerror(errno)));
  }
  const int log_fd = open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (log_fd < 0) {
    return absl::UnavailableError(absl::StrCat("cannot write ", log_path, ": ", strerror(errno)));
  }
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
    close(log_fd);
    return absl::UnavailableError(absl::StrCat("cannot make a pipe: ", strerror(errno)));
  }
  std::vector<char*> argv;
  argv.push_back(const_cast<char*>(program.c_str()));
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) ExecuteChild(argv.data(), pipe_fds[1], log_fd, parent);
  const int fork_errno = errno;
  close(pipe_fds[1]);
  close(log_fd);
  if (pid < 0) {
    close(pipe_fds[0]);
    return absl::UnavailableError(absl::StrCat("cannot fork: ", strerror(fork_errno)));
  }
  return ChildProcess(program.substr(program.rfind('/') + 1), pid, pipe_fds[0], log_path);
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : name_(std::move(other.name_)),
      pid_(std::exchange(other.pid_, -1)),
      stdout_fd_(std::exchange(other.stdout_fd_, -1)),
      log_path_(std::move(other.log_path_)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  std::swap(name_, other.name_);
  std::swap(pid_, other.pid_);
  std::swap(stdout_fd_, other.stdout_fd_);
  std::swap(log_path_, other.log_path_);
  return *this;
}

ChildProcess::~ChildProcess() {
  Stop(absl::Seconds(5));
  if (stdout_fd_ >= 0) close(stdout_fd_);
}

absl::StatusOr<std::string> ChildProcess::WaitUntilListening(absl::Time deadline) {
  std::string line;
  for (;;) {
    const int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
    pollfd poll_fd{stdout_fd_, POLLIN, 0};
    if (left_ms <= 0 || poll(&poll_fd, 1, static_cast<int>(left_ms)) == 0) {
      return absl::UnavailableError(
          absl::StrCat(name_, " does not serve yet; its log ends:\n", EndOfFile(log_path_)));
    }
    char c;
    const ssize_t got = read(stdout_fd_, &c, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      return absl::UnavailableError(
          absl::StrCat(name_, " ended before it served; its log ends:\n", EndOfFile(log_path_)));
    }
    if (c != '\n') {
      line += c;
      continue;
    }
    absl::string_view address = line;
    if (absl::ConsumePrefix(&address, "listening ")) return std::string(address);
    line.clear();
  }
}

void ChildProcess::Stop(absl::Duration patience) {
  if (pid_ <= 0) return;
  kill(pid_, SIGTERM);
  const absl::Time deadline = absl::Now() + patience;
  while (waitpid(pid_, nullptr, WNOHANG) == 0) {
    if (absl::Now() > deadline) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
      break;
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
  pid_ = -1;
}

}  // namespace fourierkv
