// A mutex that is given in the order in which it was asked for.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace fourierkv {

// Who gives a std::mutex back and asks for it again at once mostly gets it, before those who wait.
// Here they come first. For use with std::lock_guard.
class FairMutex {
 public:
  void lock() {
    std::unique_lock lock(mutex_);
    const uint64_t turn = asked_++;
    changed_.wait(lock, [&] { return turn == given_back_; });
  }
  void unlock() {
    {
      std::lock_guard lock(mutex_);
      ++given_back_;
    }
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;  // guards the counters
  std::condition_variable changed_;
  uint64_t asked_ = 0;
  uint64_t given_back_ = 0;
};

}  // namespace fourierkv
