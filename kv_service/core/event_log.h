// What a store did, in order: a bounded log that followers read at their own pace.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/time/time.h"
#include "kv_service/core/block_key.h"
#include "kv_service/core/segment_tier.h"
#include "kv_service/core/segment_tree.h"
#include "kv_service/core/stored_segment.h"

namespace fourierkv {

enum class StoreEventKind : uint8_t {
  kStored = 1,   // what is held of the segment is now exactly this
  kRemoved = 2,  // nothing is held of it any more
};

struct StoreEvent {
  StoreEventKind kind = StoreEventKind::kStored;
  RemovalReason reason = RemovalReason::kEvicted;  // of kRemoved
  Durability tier = Durability::kMemory;           // whose
  bool tail = false;
  int32_t index = 0;
  int32_t tokens = 0;
  uint64_t sequence = 0;  // given by Append
  BlockKey key;
  BlockKey parent;
  std::shared_ptr<const NamespaceContext> context;
  PerForm<int64_t> bytes;  // 0 where not held

  int64_t bytes_held() const;  // of all forms
};

// Numbers events from 1, without gaps, and keeps the latest `capacity` of them. `epoch` tells the
// numbers of one log from those of any other, such as this server's before it was restarted.
//
// It observes memory and the tiers beneath it. Append never waits for a reader. A reader that falls
// back further than the log reaches is told so and begins again with a snapshot. Thread safe;
// Append is called by stores that hold their lock, so that the order of events is the order of
// changes.
class EventLog : public SegmentObserver, public TierObserver {
 public:
  enum class ReadResult : uint8_t {
    kEvents,    // some, or none if `until` passed
    kTooFar,    // the log no longer holds the event after the given one, or never did
    kShutDown,  // nothing will come any more
  };

  explicit EventLog(int64_t capacity = int64_t{1} << 17);

  uint64_t epoch() const { return epoch_; }
  int64_t capacity() const { return capacity_; }
  uint64_t latest() const;  // 0 before the first event
  int64_t size() const;     // events that can be read now

  void Append(StoreEvent event);

  // Adds the events after number `after`, `most` at most, to `events`; waits for the first one
  // until `until`.
  ReadResult Read(uint64_t after, int64_t most, absl::Time until, std::vector<StoreEvent>& events);

  // Ends all reads, now and later.
  void ShutDown();

  void Held(const SegmentEntry& entry) override;
  void Gone(const SegmentEntry& entry, RemovalReason reason) override;
  void TierHolds(Durability tier, const TierSegment& segment) override;
  void TierLost(Durability tier, const StoredSegment& segment, RemovalReason reason) override;

 private:
  const uint64_t epoch_;
  const int64_t capacity_;
  mutable std::mutex mutex_;  // inside those of stores; guards what follows
  std::condition_variable appended_;
  int64_t waiting_ = 0;
  bool woken_ = false;
  bool shut_down_ = false;
  uint64_t latest_ = 0;
  std::vector<StoreEvent> ring_;  // event n is at (n - 1) % capacity
};

// The row of a snapshot: the event that tells all there is to tell of a segment that is held.
StoreEvent StoredEvent(const SegmentSummary& segment);
StoreEvent StoredEvent(Durability tier, const TierSegment& segment);

}  // namespace fourierkv
