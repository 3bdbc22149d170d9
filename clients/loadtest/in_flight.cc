#include "clients/loadtest/in_flight.h"

#include <utility>
#include <vector>

namespace fourierkv::loadtest {

bool InFlight::Acquire(Clock::time_point until, bool* waited) {
  std::unique_lock lock(mutex_);
  const auto ready = [&] { return stopped_ || taken_ < most_; };
  *waited = !ready();
  if (!changed_.wait_until(lock, until, ready) || stopped_) return false;
  ++taken_;
  return true;
}

void InFlight::Launch(std::shared_ptr<Operation> operation,
                      std::function<void(OperationResult, bool abandoned)> done) {
  uint64_t id = 0;
  {
    std::lock_guard lock(mutex_);
    id = next_id_++;
    operations_.emplace(id, operation);
  }
  operation->Start([this, id, done = std::move(done)](OperationResult result) {
    std::shared_ptr<Operation> ended;  // destroyed without the lock
    bool abandoned = false;
    {
      std::lock_guard lock(mutex_);
      const auto it = operations_.find(id);
      ended = std::move(it->second);
      operations_.erase(it);
      abandoned = cancelled_;
    }
    done(std::move(result), abandoned);
    ended.reset();
    Release();
  });
}

void InFlight::Release() {
  // Notifies under the lock: whoever waits for the last one may destroy this right after.
  std::lock_guard lock(mutex_);
  --taken_;
  changed_.notify_all();
}

void InFlight::Stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  changed_.notify_all();
}

bool InFlight::WaitIdle(Clock::time_point until) {
  std::unique_lock lock(mutex_);
  return changed_.wait_until(lock, until, [&] { return taken_ == 0; });
}

void InFlight::CancelAll() {
  std::vector<std::shared_ptr<Operation>> operations;
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    for (const auto& [id, operation] : operations_) operations.push_back(operation);
  }
  // gRPC may call back inside of this.
  for (const auto& operation : operations) operation->Cancel();
}

int InFlight::count() const {
  std::lock_guard lock(mutex_);
  return taken_;
}

}  // namespace fourierkv::loadtest
