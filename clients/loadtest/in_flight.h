// The operations that are in flight, and the bound on how many.

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "clients/loadtest/operation.h"

namespace fourierkv::loadtest {

// Thread safe. WaitIdle must have returned true before it is destroyed.
class InFlight {
 public:
  using Clock = std::chrono::steady_clock;

  explicit InFlight(int most) : most_(most) {}

  // Takes a slot; false if none is free until `until`, or after Stop. `*waited` is set if all slots
  // were taken at first.
  bool Acquire(Clock::time_point until, bool* waited);
  // Starts an operation in a slot that was acquired. When it ends, `done` is called with its
  // result, and whether CancelAll had been called before; then the slot is free.
  void Launch(std::shared_ptr<Operation> operation,
              std::function<void(OperationResult, bool abandoned)> done);

  // Gives back a slot that nothing was launched in.
  void Release();

  // Acquire gives nothing any more.
  void Stop();
  bool WaitIdle(Clock::time_point until);
  void CancelAll();
  int count() const;

 private:
  const int most_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false;
  bool cancelled_ = false;
  int taken_ = 0;
  uint64_t next_id_ = 0;
  std::unordered_map<uint64_t, std::shared_ptr<Operation>> operations_;
};

}  // namespace fourierkv::loadtest
