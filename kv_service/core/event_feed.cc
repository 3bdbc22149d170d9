#include "kv_service/core/event_feed.h"

#include <algorithm>
#include <utility>

#include "kv_service/core/segment_store.h"
#include "kv_service/core/segment_tier.h"

namespace fourierkv {
namespace {

constexpr int64_t kMostEvents = 1024;      // of one message: about 150 kB on the wire
constexpr size_t kMostSnapshotRows = 512;  // and this long a look at the store

}  // namespace

EventFeed::EventFeed(EventLog* log, const SegmentStore* store, uint64_t epoch, uint64_t from,
                     Filter visible, std::vector<const SegmentTier*> tiers)
    : log_(log),
      store_(store),
      visible_(std::move(visible)),
      tiers_(std::move(tiers)),
      // Numbers that are yet to come are nobody's: they must not become true by waiting.
      in_snapshot_(epoch != log->epoch() || from > log->latest()),
      after_(from) {}

bool EventFeed::Next(absl::Time until, Message& message) {
  message = Message();
  if (!in_snapshot_) {
    switch (log_->Read(after_, kMostEvents, until, message.events)) {
      case EventLog::ReadResult::kShutDown:
        return false;
      case EventLog::ReadResult::kTooFar:
        in_snapshot_ = true;
        break;
      case EventLog::ReadResult::kEvents:
        message.after = after_;
        message.through = after_ += message.events.size();
        Hide(message.events);
        return true;
    }
  }
  // No time is left for a snapshot either.
  std::vector<StoreEvent> none;
  if (log_->Read(log_->latest(), 0, absl::InfinitePast(), none) ==
      EventLog::ReadResult::kShutDown) {
    return false;
  }
  Snapshot(message);
  return true;
}

void EventFeed::Snapshot(Message& message) {
  message.snapshot = true;
  if (!begun_) {
    begun_ = true;
    message.snapshot_begins = true;
    walked_ = position_ = 0;
    // Before the walk: all up to here is among the rows.
    after_ = log_->latest();
  }
  const bool more = Walk(message.events);
  Hide(message.events);
  message.after = message.through = after_;
  if (more) return;
  message.snapshot_complete = true;
  message.snapshot_exact_at = log_->latest();
  in_snapshot_ = begun_ = false;
}

bool EventFeed::Walk(std::vector<StoreEvent>& events) {
  bool more = false;
  if (walked_ == 0) {
    std::vector<SegmentSummary> rows;
    more = store_->Walk(position_, kMostSnapshotRows, rows);
    for (const SegmentSummary& row : rows) {
      if (row.bytes() > 0) events.push_back(StoredEvent(row));  // else a hole
    }
  } else {
    const SegmentTier& tier = *tiers_[walked_ - 1];
    std::vector<TierSegment> rows;
    more = tier.Walk(position_, kMostSnapshotRows, rows);
    for (const TierSegment& row : rows) {
      StoreEvent event = StoredEvent(tier.durability(), row);
      if (event.bytes_held() > 0) events.push_back(std::move(event));
    }
  }
  if (more) return true;
  position_ = 0;
  return ++walked_ <= tiers_.size();
}

void EventFeed::Hide(std::vector<StoreEvent>& events) const {
  if (visible_ == nullptr) return;
  std::erase_if(events, [this](const StoreEvent& event) { return !visible_(*event.context); });
}

}  // namespace fourierkv
