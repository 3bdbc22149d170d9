#include "kv_service/core/store_sweeper.h"

#include <utility>

namespace fourierkv {

StoreSweeper::StoreSweeper(std::function<bool()> step, absl::Duration period)
    : step_(std::move(step)), period_(period), thread_([this] { Run(); }) {}

StoreSweeper::~StoreSweeper() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  stopped_.notify_all();
  thread_.join();
}

void StoreSweeper::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopped_.wait_for(lock, absl::ToChronoNanoseconds(period_), [&] { return stopping_; })) {
    lock.unlock();
    for (int i = 0; i < kSteps && step_(); ++i) std::this_thread::yield();
    lock.lock();
  }
}

}  // namespace fourierkv
