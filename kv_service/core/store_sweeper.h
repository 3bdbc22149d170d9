// Lets go of what has expired in a store that nobody uses.

#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/time/time.h"

namespace fourierkv {

// Calls `step`, which returns true if there is more to do, from a thread of its own: every `period`
// as often as that, but kSteps times at most. Between two steps others get to work.
class StoreSweeper {
 public:
  static constexpr int kSteps = 64;

  StoreSweeper(std::function<bool()> step, absl::Duration period);
  // Waits for a step that is running.
  ~StoreSweeper();
  StoreSweeper(const StoreSweeper&) = delete;
  StoreSweeper& operator=(const StoreSweeper&) = delete;

 private:
  void Run();

  const std::function<bool()> step_;
  const absl::Duration period_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable stopped_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace fourierkv
