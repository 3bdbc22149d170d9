#include "kv_service/tiers/garbage_collector.h"

#include <memory>

namespace fourierkv {
namespace {

constexpr absl::Duration kCollectEvery = absl::Seconds(1);
// Of the limit: files beyond the first, with garbage beyond the second.
constexpr double kCollectAbove = 0.9;
constexpr double kWorthCollecting = 0.1;

}  // namespace

GarbageCollector::GarbageCollector(RecoveringDatabase* database, int64_t limit_bytes)
    : database_(database), limit_bytes_(limit_bytes), thread_([this] { Loop(); }) {}

GarbageCollector::~GarbageCollector() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  stopped_.notify_all();
  thread_.join();
}

void GarbageCollector::Loop() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopped_.wait_for(lock, absl::ToChronoNanoseconds(kCollectEvery),
                            [&] { return stopping_; })) {
    lock.unlock();
    // Let go of before the next round: a database that is being closed waits for its readers.
    if (const std::shared_ptr<DiskDatabase> database = database_->get(); database != nullptr) {
      const auto files = static_cast<double>(database->PayloadFileBytes());
      const auto garbage = static_cast<double>(database->PayloadGarbageBytes());
      const auto limit = static_cast<double>(limit_bytes_);
      if (database_->healthy() && files > kCollectAbove * limit &&
          garbage > kWorthCollecting * limit) {
        database_->Failed(database->CollectGarbage()).IgnoreError();
      }
    }
    lock.lock();
  }
}

}  // namespace fourierkv
