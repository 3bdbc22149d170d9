#include "clients/local_stack/local_stack.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/base/signal_thread.h"

namespace fourierkv {
namespace {

// Nobody but the owner's calls is served, and the owner is leaving.
constexpr char kDrainSeconds[] = "0.5";

// The stack that a signal has to stop. Guarded by running_mutex.
std::mutex running_mutex;
LocalStack* running = nullptr;

}  // namespace

void LocalStack::StopOnSignals() {
  signal(SIGPIPE, SIG_IGN);
  HandleSignals({SIGINT, SIGTERM, SIGHUP}, [](int number) {
    std::lock_guard lock(running_mutex);
    if (running != nullptr) running->Stop();
    _exit(128 + number);
  });
}

absl::StatusOr<std::string> LocalStack::Launch(const std::string& program,
                                               const std::vector<std::string>& arguments,
                                               absl::Time deadline) {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return absl::InternalError("cannot read /proc/self/exe");
  const std::string path = (self.parent_path() / program).string();
  ChildProcess* child = nullptr;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return absl::CancelledError("stopping");
    absl::StatusOr<ChildProcess> started =
        ChildProcess::Start(path, arguments, absl::StrCat(log_dir_, "/", program, ".log"));
    if (!started.ok()) return started.status();
    children_.push_back(*std::move(started));
    child = &children_.back();
  }
  return child->WaitUntilListening(deadline);
}

absl::StatusOr<std::unique_ptr<LocalStack>> LocalStack::Start(const LocalStackOptions& options) {
  std::unique_ptr<LocalStack> stack(new LocalStack());
  stack->children_.reserve(3);  // Launch keeps pointers
  std::string log_dir = (std::filesystem::temp_directory_path() / "fourierkv-XXXXXX").string();
  if (mkdtemp(log_dir.data()) == nullptr) {
    return absl::UnavailableError(absl::StrCat("cannot make a folder for logs like ", log_dir));
  }
  stack->log_dir_ = log_dir;
  {
    std::lock_guard lock(running_mutex);
    running = stack.get();
  }
  const absl::Time deadline = absl::Now() + options.start_timeout;
  const std::string threads = absl::StrCat(options.threads);
  absl::StatusOr<std::string> server =
      stack->Launch("fourierkv-server",
                    {"--listen", "127.0.0.1:0", "--memory", options.memory, "--threads", threads,
                     "--device", options.device, "--drain-seconds", kDrainSeconds},
                    deadline);
  if (!server.ok()) return server.status();
  stack->server_ = *server;
  std::vector<std::string> arguments = {
      "--listen",        "127.0.0.1:0",     "--server",        *server,
      "--model",         options.model_dir, "--threads",       threads,
      "--drain-seconds", kDrainSeconds,     "--recent-window", absl::StrCat(options.recent_window),
      "--device",        options.device};
  if (!options.profile.empty()) {
    arguments.push_back("--profile");
    arguments.push_back(options.profile);
  }
  absl::StatusOr<std::string> prefill = stack->Launch("fourierkv-prefill", arguments, deadline);
  if (!prefill.ok()) return prefill.status();
  stack->prefill_ = *prefill;
  absl::StatusOr<std::string> decode = stack->Launch("fourierkv-decode", arguments, deadline);
  if (!decode.ok()) return decode.status();
  stack->decode_ = *decode;
  return stack;
}

void LocalStack::Stop() {
  std::lock_guard lock(mutex_);
  stopping_ = true;
  // Workers first: the server has then nobody left to wait for. The objects stay: another thread
  // may be waiting for one of them to listen.
  for (auto child = children_.rbegin(); child != children_.rend(); ++child) {
    child->Stop(absl::Seconds(5));
  }
  if (!log_dir_.empty()) {
    std::error_code ignored;
    std::filesystem::remove_all(log_dir_, ignored);
    log_dir_.clear();
  }
}

LocalStack::~LocalStack() {
  {
    std::lock_guard lock(running_mutex);
    if (running == this) running = nullptr;
  }
  Stop();
}

}  // namespace fourierkv
