#include "clients/cpp/event_mirror.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "compute/base/content_hash.h"

namespace fourierkv {

absl::Status EventMirror::Refuse(const std::string& why) {
  whole_ = in_snapshot_ = false;
  return absl::DataLossError(absl::StrCat("events: ", why, "; a snapshot is needed"));
}

absl::Status EventMirror::Apply(const v1::SubscribeResponse& message) {
  const bool begins = message.snapshot() && message.events_size() > 0 &&
                      message.events(0).kind() == v1::SEGMENT_EVENT_KIND_CLEARED;
  if (begins) {
    segments_.clear();
    whole_ = false;
    in_snapshot_ = true;
    exact_at_ = 0;
    epoch_ = message.epoch();
    sequence_ = message.after_sequence();
    ++snapshots_;
  }
  if (message.epoch() != epoch_ || epoch_ == 0) {
    return Refuse(absl::StrCat("they are of epoch ", message.epoch(), ", not of ", epoch_));
  }
  if (message.snapshot() != in_snapshot_ || !(whole_ || in_snapshot_)) {
    return Refuse(message.snapshot() ? "a snapshot has lost its beginning"
                                     : "a snapshot has lost its end");
  }
  if (message.after_sequence() != sequence_ || message.through_sequence() < sequence_) {
    return Refuse(absl::StrCat("changes ", message.after_sequence() + 1, " to ",
                               message.through_sequence(), " do not follow ", sequence_));
  }
  for (int i = begins ? 1 : 0; i < message.events_size(); ++i) {
    const v1::SegmentEvent& event = message.events(i);
    if (!Digest::FromRaw(event.block_key(), "block_key").ok()) {
      return Refuse("a block_key is none");
    }
    Key key(event.block_key(), event.tier());
    if (event.kind() == v1::SEGMENT_EVENT_KIND_STORED) {
      segments_.insert_or_assign(std::move(key), event);
    } else if (event.kind() == v1::SEGMENT_EVENT_KIND_REMOVED && !message.snapshot()) {
      segments_.erase(key);
    } else {
      return Refuse(absl::StrCat("an event of kind ", static_cast<int>(event.kind()),
                                 " is unknown or out of place"));
    }
  }
  sequence_ = message.through_sequence();
  if (message.snapshot_complete()) {
    if (!message.snapshot() || message.snapshot_exact_at() < sequence_) {
      return Refuse("a snapshot ends before it begins");
    }
    in_snapshot_ = false;
    whole_ = true;
    exact_at_ = message.snapshot_exact_at();
  }
  return absl::OkStatus();
}

v1::SubscribeRequest EventMirror::Resume() const {
  v1::SubscribeRequest request;
  if (exact()) {
    request.set_epoch(epoch_);
    request.set_from_sequence(sequence_);
  }
  return request;
}

}  // namespace fourierkv
