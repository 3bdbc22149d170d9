// The whole service on this machine: server, prefill worker and decode worker as child processes on
// free loopback ports.

#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "clients/local_stack/child_process.h"

namespace fourierkv {

struct LocalStackOptions {
  std::string model_dir;
  std::string profile;  // as the workers' --profile
  int recent_window = 1024;
  int threads = 0;
  std::string device = "cpu";  // of all three
  std::string memory = "4GB";
  absl::Duration start_timeout = absl::Minutes(2);
};

// Everything is stopped, and its log files removed, on destruction.
class LocalStack {
 public:
  // Programs are looked for beside the running one. Unavailable, with the end of the log, if one of
  // them does not come up.
  static absl::StatusOr<std::unique_ptr<LocalStack>> Start(const LocalStackOptions& options);
  ~LocalStack();
  LocalStack(const LocalStack&) = delete;
  LocalStack& operator=(const LocalStack&) = delete;

  const std::string& server() const { return server_; }
  const std::string& prefill() const { return prefill_; }
  const std::string& decode() const { return decode_; }

  // Early in main: from now on SIGINT, SIGTERM and SIGHUP stop whatever stack is
  // running, then end the program with status 128 + signal.
  static void StopOnSignals();

 private:
  LocalStack() = default;
  absl::StatusOr<std::string> Launch(const std::string& program,
                                     const std::vector<std::string>& arguments,
                                     absl::Time deadline);
  void Stop();

  std::mutex mutex_;  // guards the children against a stop by signal
  std::vector<ChildProcess> children_;
  bool stopping_ = false;
  std::string log_dir_;
  std::string server_;
  std::string prefill_;
  std::string decode_;
};

}  // namespace fourierkv
