#include "tests/clients/subprocess.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <functional>
#include <sstream>

#include "absl/time/clock.h"

namespace fourierkv {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);

std::string ReadFile(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

bool Until(const std::function<bool()>& done) {
  for (const absl::Time deadline = absl::Now() + kPatience; absl::Now() < deadline;) {
    if (done()) return true;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return false;
}

}  // namespace

Subprocess::Subprocess(const std::string& program, const std::vector<std::string>& arguments) {
  const std::string path = std::string(FOURIERKV_BIN_DIR) + "/" + program;
  std::vector<char*> argv = {const_cast<char*>(path.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, (folder_.path() + "/out").c_str(),
                                   O_WRONLY | O_CREAT, 0600);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, (folder_.path() + "/err").c_str(),
                                   O_WRONLY | O_CREAT, 0600);
  if (posix_spawn(&pid_, path.c_str(), &actions, nullptr, argv.data(), environ) != 0) std::abort();
  posix_spawn_file_actions_destroy(&actions);
}

Subprocess::~Subprocess() {
  if (pid_ <= 0) return;
  Signal(SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void Subprocess::Signal(int number) const {
  if (pid_ > 0) kill(pid_, number);
}

int Subprocess::Wait(absl::Duration limit) {
  const absl::Time deadline = absl::Now() + limit;
  for (int status = 0; pid_ > 0;) {
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      status_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    } else if (absl::Now() >= deadline) {
      break;
    } else {
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  return status_;
}

std::string Subprocess::out() const { return ReadFile(folder_.path() + "/out"); }
std::string Subprocess::err() const { return ReadFile(folder_.path() + "/err"); }

std::string Subprocess::WaitForAddress() {
  constexpr char kWord[] = "listening ";
  std::string address;
  Until([&] {
    const bool ended = Wait(absl::ZeroDuration()) >= 0;
    const std::string text = out();
    const size_t begin = text.find(kWord);
    const size_t end = text.find('\n', begin);
    if (begin == std::string::npos || end == std::string::npos) return ended;
    address = text.substr(begin + sizeof kWord - 1, end - begin - sizeof kWord + 1);
    return true;
  });
  return address;
}

bool Subprocess::WaitForError(const std::string& text) {
  return Until([&] { return err().find(text) != std::string::npos; });
}

Ended RunProgram(const std::string& program, const std::vector<std::string>& arguments) {
  Subprocess process(program, arguments);
  const int status = process.Wait();
  return {status, process.out(), process.err()};
}

}  // namespace fourierkv
