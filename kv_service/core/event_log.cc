#include "kv_service/core/event_log.h"

#include <algorithm>
#include <utility>

#include "absl/random/random.h"
#include "absl/time/clock.h"

namespace fourierkv {
namespace {

uint64_t RandomEpoch() {
  absl::BitGen random;
  return absl::Uniform<uint64_t>(absl::IntervalClosed, random, 1, ~uint64_t{0});
}

StoreEvent EventOf(const SegmentEntry& entry, StoreEventKind kind) {
  StoreEvent event;
  event.kind = kind;
  event.tail = entry.tail;
  event.index = entry.index;
  event.tokens = entry.tokens;
  event.key = entry.key;
  event.parent = entry.parent_key();
  event.context = entry.space->context;
  return event;
}

}  // namespace

int64_t StoreEvent::bytes_held() const {
  int64_t sum = 0;
  for (const SegmentForm form : kHeldForms) sum += bytes[form];
  return sum;
}

EventLog::EventLog(int64_t capacity)
    : epoch_(RandomEpoch()), capacity_(std::max<int64_t>(capacity, 1)) {}

uint64_t EventLog::latest() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return latest_;
}

int64_t EventLog::size() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int64_t>(ring_.size());
}

void EventLog::Append(StoreEvent event) {
  bool wake = false;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    event.sequence = latest_ + 1;
    if (static_cast<int64_t>(ring_.size()) < capacity_) {
      ring_.push_back(std::move(event));
    } else {
      // Swapped, so that the old event's namespace is let go after the lock.
      std::swap(ring_[latest_ % static_cast<uint64_t>(capacity_)], event);
    }
    ++latest_;
    // Waiters are woken once for all that comes until the first of them runs.
    wake = waiting_ > 0 && !std::exchange(woken_, true);
  }
  if (wake) appended_.notify_all();
}

EventLog::ReadResult EventLog::Read(uint64_t after, int64_t most, absl::Time until,
                                    std::vector<StoreEvent>& events) {
  std::unique_lock<std::mutex> lock(mutex_);
  ++waiting_;
  while (!shut_down_ && after == latest_) {
    const absl::Duration left = until - absl::Now();
    if (left <= absl::ZeroDuration()) break;
    appended_.wait_for(lock, absl::ToChronoNanoseconds(std::min(left, absl::Hours(1))));
    woken_ = false;
  }
  --waiting_;
  if (shut_down_) return ReadResult::kShutDown;
  if (after > latest_ || latest_ - after > ring_.size()) return ReadResult::kTooFar;
  const uint64_t end = std::min(latest_, after + static_cast<uint64_t>(std::max<int64_t>(most, 0)));
  for (uint64_t n = after; n < end; ++n) {
    events.push_back(ring_[n % static_cast<uint64_t>(capacity_)]);
  }
  return ReadResult::kEvents;
}

void EventLog::ShutDown() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    shut_down_ = true;
  }
  appended_.notify_all();
}

void EventLog::Held(const SegmentEntry& entry) {
  StoreEvent event = EventOf(entry, StoreEventKind::kStored);
  for (const SegmentForm form : kHeldForms) {
    const FormPtr& held = entry.forms.Get(form);
    if (held != nullptr) event.bytes[form] = held->bytes();
  }
  Append(std::move(event));
}

void EventLog::Gone(const SegmentEntry& entry, RemovalReason reason) {
  StoreEvent event = EventOf(entry, StoreEventKind::kRemoved);
  event.reason = reason;
  Append(std::move(event));
}

void EventLog::TierHolds(Durability tier, const TierSegment& segment) {
  Append(StoredEvent(tier, segment));
}

void EventLog::TierLost(Durability tier, const StoredSegment& segment, RemovalReason reason) {
  StoreEvent event = StoredEvent(tier, TierSegment{.segment = segment});
  event.kind = StoreEventKind::kRemoved;
  event.reason = reason;
  Append(std::move(event));
}

StoreEvent StoredEvent(Durability tier, const TierSegment& held) {
  StoreEvent event;
  event.tail = held.segment.tail;
  event.index = static_cast<int32_t>(held.segment.index);
  event.tokens = held.segment.tokens;
  event.tier = tier;
  event.key = held.segment.key;
  event.parent = held.segment.parent;
  event.context = held.segment.context;
  for (const SegmentForm form : kHeldForms) event.bytes[form] = held.forms[form].bytes;
  return event;
}

StoreEvent StoredEvent(const SegmentSummary& segment) {
  StoreEvent event;
  event.tail = segment.tail;
  event.index = static_cast<int32_t>(segment.index);
  event.tokens = segment.tokens;
  event.key = segment.key;
  event.parent = segment.parent;
  event.context = segment.context;
  for (const SegmentForm form : kHeldForms) event.bytes[form] = segment.forms[form].bytes;
  return event;
}

}  // namespace fourierkv
