// A fourierkv-server that can be killed, drained, watched and started again at the same address.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/clients/subprocess.h"

namespace fourierkv {

// A process as the kernel sees it; zeros if it is gone.
struct ProcessFigures {
  int64_t resident_bytes = 0;
  int64_t peak_resident_bytes = 0;
  int64_t descriptors = 0;
};
ProcessFigures LookAtProcess(pid_t pid);

// A memory cgroup of this machine (version 1 or 2) for one process, if they can be made here.
class MemoryCap {
 public:
  explicit MemoryCap(int64_t bytes);
  ~MemoryCap();
  MemoryCap(const MemoryCap&) = delete;
  MemoryCap& operator=(const MemoryCap&) = delete;

  // Whether the process is held to it from now on: it and its threads; what it took before counts
  // elsewhere.
  bool Take(pid_t pid) const;

 private:
  std::string folder_;  // empty: there is none
};

class ServerProcess {
 public:
  // Flags besides --listen and --log-level. Aborts the program if the server does not start.
  explicit ServerProcess(std::vector<std::string> flags);

  const std::string& address() const { return address_; }
  Subprocess& process() { return *process_; }
  ProcessFigures Look() const { return LookAtProcess(process_->pid()); }

  // Another process with the same flags, at the same address, once the one before has ended.
  void Restart();

 private:
  void Start();

  const std::vector<std::string> flags_;
  std::string address_ = "127.0.0.1:0";  // the port of the first start from then on
  std::unique_ptr<Subprocess> process_;
};

}  // namespace fourierkv
