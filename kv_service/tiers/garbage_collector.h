// Keeps the payload's files of a disk database within their budget.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "kv_service/tiers/recovering_database.h"

namespace fourierkv {

// Looks every second, from a thread of its own, whether garbage is to be collected: when files come
// near `limit_bytes`, and there is enough to gain.
class GarbageCollector {
 public:
  // `database` must outlive it.
  GarbageCollector(RecoveringDatabase* database, int64_t limit_bytes);
  ~GarbageCollector();
  GarbageCollector(const GarbageCollector&) = delete;
  GarbageCollector& operator=(const GarbageCollector&) = delete;

 private:
  void Loop();

  RecoveringDatabase* const database_;
  const int64_t limit_bytes_;
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stopping_ = false;  // guarded by mutex_
  std::thread thread_;     // last: it uses all of the above
};

}  // namespace fourierkv
