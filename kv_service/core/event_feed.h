// What one follower of a store and its tiers is told next: changes, or a snapshot when the log no
// longer reaches back.

#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/time/time.h"
#include "kv_service/core/event_log.h"

namespace fourierkv {

class SegmentStore;
class SegmentTier;

// A snapshot costs the store no more than short looks (SegmentStore::Walk), so it is not of one
// moment. It need not be: its rows hold everything up to the number where it began, the changes
// since then follow, and each says all that is true of its segment. With the changes up to where
// the walk ended the follower has what the store has.
//
// One thread at a time. Log, store and tiers must outlive it.
class EventFeed {
 public:
  struct Message {
    // As in v1::SubscribeResponse.
    uint64_t after = 0;
    uint64_t through = 0;
    bool snapshot = false;
    bool snapshot_begins = false;  // forget everything first
    bool snapshot_complete = false;
    uint64_t snapshot_exact_at = 0;
    std::vector<StoreEvent> events;
  };
  using Filter = std::function<bool(const NamespaceContext&)>;

  // Goes on after number `from` of `epoch`, if the log is of that epoch and reaches back so far;
  // otherwise begins with a snapshot. Events of namespaces that `visible` refuses are left out.
  EventFeed(EventLog* log, const SegmentStore* store, uint64_t epoch, uint64_t from,
            Filter visible = nullptr, std::vector<const SegmentTier*> tiers = {});

  // The next message; one without events if nothing happens until `until`. False if the log was
  // shut down.
  bool Next(absl::Time until, Message& message);

 private:
  void Snapshot(Message& message);
  // Adds the next rows; false when there are no more.
  bool Walk(std::vector<StoreEvent>& rows);
  void Hide(std::vector<StoreEvent>& events) const;

  EventLog* const log_;
  const SegmentStore* const store_;
  const Filter visible_;
  const std::vector<const SegmentTier*> tiers_;
  bool in_snapshot_;
  bool begun_ = false;   // the snapshot
  size_t walked_ = 0;    // of the snapshot: memory, and then tiers, that are done
  size_t position_ = 0;  // in the next one
  uint64_t after_;
};

}  // namespace fourierkv
