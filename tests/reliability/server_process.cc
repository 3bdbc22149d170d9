#include "tests/reliability/server_process.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace fourierkv {
namespace {

namespace fs = std::filesystem;

bool Write(const std::string& path, int64_t value) {
  std::ofstream file(path);
  file << value << std::flush;
  return file.good();
}

}  // namespace

ProcessFigures LookAtProcess(pid_t pid) {
  ProcessFigures figures;
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  for (std::string word; status >> word;) {
    int64_t kib = 0;
    if (word == "VmRSS:" && status >> kib) figures.resident_bytes = kib << 10;
    if (word == "VmHWM:" && status >> kib) figures.peak_resident_bytes = kib << 10;
  }
  std::error_code gone;
  const fs::directory_iterator descriptors(absl::StrCat("/proc/", pid, "/fd"), gone);
  if (!gone) figures.descriptors = std::distance(begin(descriptors), end(descriptors));
  return figures;
}

MemoryCap::MemoryCap(int64_t bytes) {
  const bool unified = fs::exists("/sys/fs/cgroup/cgroup.controllers");
  const std::string folder = absl::StrCat(unified ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory",
                                          "/fourierkv-suite-", getpid());
  std::error_code refused;
  if (!fs::create_directory(folder, refused) || refused) return;
  folder_ = folder;
  if (Write(folder_ + (unified ? "/memory.max" : "/memory.limit_in_bytes"), bytes)) return;
  fs::remove(folder_, refused);
  folder_.clear();
}

MemoryCap::~MemoryCap() {
  if (folder_.empty()) return;
  std::error_code busy;
  fs::remove(folder_, busy);  // not while the process lives: destroy that first
}

bool MemoryCap::Take(pid_t pid) const {
  return !folder_.empty() && Write(folder_ + "/cgroup.procs", pid);
}

ServerProcess::ServerProcess(std::vector<std::string> flags) : flags_(std::move(flags)) { Start(); }

void ServerProcess::Start() {
  std::vector<std::string> all = {"--listen", address_, "--log-level", "warning"};
  all.insert(all.end(), flags_.begin(), flags_.end());
  process_ = std::make_unique<Subprocess>("fourierkv-server", all);
  address_ = process_->WaitForAddress();
  if (!address_.empty()) return;
  std::fprintf(stderr, "fourierkv-server does not start: %s\n", process_->err().c_str());
  std::abort();
}

void ServerProcess::Restart() {
  if (process_->Wait() < 0) {
    process_->Signal(SIGKILL);
    process_->Wait();
  }
  Start();
}

}  // namespace fourierkv
