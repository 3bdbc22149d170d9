// What a server holds, as its events tell it.

#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "fourierkv/v1/event_service.pb.h"

namespace fourierkv {

// Applies the messages of EventService.Subscribe and proves that none is missing: each must go on
// where the one before ended. Not thread safe.
class EventMirror {
 public:
  // Block key and tier.
  using Key = std::pair<std::string, v1::StorageTier>;

  // DataLoss, saying what is wrong, if the message does not follow what was applied or cannot be
  // understood: the mirror is then not exact, and only a snapshot makes it so again.
  absl::Status Apply(const v1::SubscribeResponse& message);

  // Whether segments() is exactly what the server held after change number sequence(): a whole
  // snapshot was applied, and all changes since it was begun and up to its end.
  bool exact() const { return whole_ && sequence_ >= exact_at_; }
  uint64_t epoch() const { return epoch_; }
  uint64_t sequence() const { return sequence_; }
  uint64_t snapshots() const { return snapshots_; }  // how many were begun

  // STORED events, by what they are of.
  const absl::flat_hash_map<Key, v1::SegmentEvent>& segments() const { return segments_; }

  // Where a subscription must go on: `epoch` and `from_sequence` of a request; 0 unless exact.
  v1::SubscribeRequest Resume() const;

 private:
  absl::Status Refuse(const std::string& why);

  uint64_t epoch_ = 0;
  uint64_t sequence_ = 0;
  uint64_t exact_at_ = 0;
  uint64_t snapshots_ = 0;
  bool whole_ = false;        // a whole snapshot was applied
  bool in_snapshot_ = false;  // part of one was
  absl::flat_hash_map<Key, v1::SegmentEvent> segments_;
};

}  // namespace fourierkv
