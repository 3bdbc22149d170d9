// What is still to be written to the tiers, behind the answers to puts that did not wait for it.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kv_service/core/patience.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

// A bounded queue and the thread that empties it, in order. What does not fit is not written: it
// was never promised. Thread safe.
class WriteBack {
 public:
  struct Stats {
    int64_t queued_bytes = 0;
    uint64_t written_segments = 0;
    uint64_t dropped_segments = 0;  // for lack of room in the queue
    uint64_t failed_segments = 0;
  };
  // Writes to the tier of that number, from the queue's thread.
  using Writer = std::function<absl::Status(size_t tier, std::span<const StoredSegment>)>;

  // The queue keeps segments alive, so `limit_bytes` is memory that eviction cannot get.
  WriteBack(Writer writer, int64_t limit_bytes);
  // Drops what is still queued.
  ~WriteBack();
  WriteBack(const WriteBack&) = delete;
  WriteBack& operator=(const WriteBack&) = delete;

  void Push(size_t tier, std::vector<StoredSegment> segments);

  // Takes out these keys and what continues them, and waits until what is being written is; false
  // if it still is when `patience` is over.
  bool Forget(std::span<const BlockKey> keys, const Patience& patience);

  // Waits until everything is written; false if it is not by `deadline`.
  bool Drain(absl::Time deadline);

  Stats stats() const;

 private:
  struct Item {
    size_t tier;
    std::vector<StoredSegment> segments;
    int64_t bytes;
  };
  void Run();

  const Writer writer_;
  const int64_t limit_bytes_;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<Item> queue_;
  bool writing_ = false;
  bool stopping_ = false;
  Stats stats_;
  std::thread thread_;
};

}  // namespace fourierkv
