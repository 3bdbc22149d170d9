// Decode steps of several threads' sequences, taken together.

#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace fourierkv {

// A step of a GPU costs little more for many sequences than for one, as it is bound by reading the
// weights. So whoever wants a step while one is running waits, and one of those who wait then takes
// it for all. Who was in the step before is waited for for a moment, so that threads that decode at
// the same time stay together. Thread safe.
template <typename Row>
class StepBatcher {
 public:
  // Computes a step of at most `max_batch` rows. Called by one thread at a time. Its status is that
  // of every row.
  using Run = std::function<absl::Status(std::span<Row* const> rows)>;

  StepBatcher(size_t max_batch, Run run) : max_batch_(max_batch), run_(std::move(run)) {}

  // Returns when `row` has been computed.
  absl::Status Step(Row& row) {
    Waiting waiting{&row};
    std::unique_lock lock(mutex_);
    waiting_.push_back(&waiting);
    changed_.notify_all();
    while (!waiting.done) {
      if (running_) {
        changed_.wait(lock);
      } else {
        RunOne(lock);
      }
    }
    return waiting.status;
  }

 private:
  struct Waiting {
    Row* row;
    bool done = false;
    absl::Status status = {};
  };

  void RunOne(std::unique_lock<std::mutex>& lock) {
    running_ = true;
    changed_.wait_for(lock, kPatience, [&] { return waiting_.size() >= last_batch_; });
    const size_t n = std::min(waiting_.size(), max_batch_);
    const std::vector<Waiting*> batch(waiting_.begin(), waiting_.begin() + n);
    waiting_.erase(waiting_.begin(), waiting_.begin() + n);
    last_batch_ = n;
    lock.unlock();
    std::vector<Row*> rows;
    for (const Waiting* waiting : batch) rows.push_back(waiting->row);
    const absl::Status status = run_(rows);
    lock.lock();
    for (Waiting* waiting : batch) {
      waiting->status = status;
      waiting->done = true;
    }
    running_ = false;
    changed_.notify_all();
  }

  static constexpr std::chrono::microseconds kPatience{300};

  const size_t max_batch_;
  const Run run_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<Waiting*> waiting_;
  size_t last_batch_ = 0;
  bool running_ = false;
};

}  // namespace fourierkv
