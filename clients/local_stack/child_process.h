// A serving program of this project started as a child.

#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace fourierkv {

// Starts a program that prints "listening ADDRESS" on stdout once it serves. It runs in a process
// group of its own, so that Ctrl-C reaches only the parent, and is killed if the parent dies. Not
// thread safe, except that Stop may be called from another thread.
class ChildProcess {
 public:
  // Returns at once. stderr of the child goes to the file `log_path`. `program` is a path.
  // NotFound if the program cannot be executed.
  static absl::StatusOr<ChildProcess> Start(const std::string& program,
                                            const std::vector<std::string>& arguments,
                                            const std::string& log_path);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  // Stops it.
  ~ChildProcess();

  // Where the program listens. Unavailable, with the end of its log, if it exits first or says
  // nothing until `deadline`.
  absl::StatusOr<std::string> WaitUntilListening(absl::Time deadline);

  // SIGTERM, then SIGKILL once `patience` has passed. Returns when the process is gone.
  void Stop(absl::Duration patience);

  pid_t pid() const { return pid_; }  // -1 once stopped

 private:
  ChildProcess(std::string name, pid_t pid, int stdout_fd, std::string log_path)
      : name_(std::move(name)), pid_(pid), stdout_fd_(stdout_fd), log_path_(std::move(log_path)) {}

  std::string name_;
  pid_t pid_ = -1;
  int stdout_fd_ = -1;
  std::string log_path_;
};

}  // namespace fourierkv
