#include "kv_service/core/write_back.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/time/clock.h"
#include "kv_service/core/kill_point.h"
#include "kv_service/core/work_gate.h"

namespace fourierkv {
namespace {

constexpr absl::Duration kLookEvery = absl::Milliseconds(5);  // whether a call has ended

int64_t BytesOf(std::span<const StoredSegment> segments) {
  int64_t bytes = 0;
  for (const StoredSegment& segment : segments) bytes += segment.bytes();
  return bytes;
}

}  // namespace

WriteBack::WriteBack(Writer writer, int64_t limit_bytes)
    : writer_(std::move(writer)), limit_bytes_(limit_bytes), thread_([this] { Run(); }) {}

WriteBack::~WriteBack() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void WriteBack::Push(size_t tier, std::vector<StoredSegment> segments) {
  const int64_t bytes = BytesOf(segments);
  std::lock_guard<std::mutex> lock(mutex_);
  if (stats_.queued_bytes + bytes > limit_bytes_) {
    stats_.dropped_segments += segments.size();
    return;
  }
  stats_.queued_bytes += bytes;
  queue_.push_back({tier, std::move(segments), bytes});
  KillPoint("write_back.queued");
  changed_.notify_all();
}

bool WriteBack::Forget(std::span<const BlockKey> keys, const Patience& patience) {
  absl::flat_hash_set<BlockKey> gone(keys.begin(), keys.end());
  std::vector<Item> freed;  // destroyed after the lock
  WorkGate::PauseThisThread();
  std::unique_lock<std::mutex> lock(mutex_);
  // What is queued for one sequence comes in its order, so that parents are seen first.
  for (Item& item : queue_) {
    Item kept{item.tier, {}, 0};
    for (StoredSegment& segment : item.segments) {
      if (gone.contains(segment.key) || gone.contains(segment.parent)) {
        gone.insert(segment.key);
      } else {
        kept.segments.push_back(segment);
      }
    }
    kept.bytes = BytesOf(kept.segments);
    stats_.queued_bytes += kept.bytes - item.bytes;
    std::swap(item, kept);
    freed.push_back(std::move(kept));
  }
  while (writing_ && !patience.over()) {
    const absl::Time next = std::min(patience.deadline(), absl::Now() + kLookEvery);
    changed_.wait_until(lock, absl::ToChronoTime(next), [this] { return !writing_; });
  }
  const bool done = !writing_;
  lock.unlock();
  return done;
}

bool WriteBack::Drain(absl::Time deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_until(lock, absl::ToChronoTime(deadline),
                             [this] { return queue_.empty() && !writing_; });
}

WriteBack::Stats WriteBack::stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

void WriteBack::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    Item item = std::move(queue_.front());
    queue_.pop_front();
    writing_ = true;
    lock.unlock();
    KillPoint("write_back.before_store");
    const absl::Status status =
        item.segments.empty() ? absl::OkStatus() : writer_(item.tier, item.segments);
    KillPoint("write_back.after_store");
    const uint64_t count = item.segments.size();
    item.segments.clear();
    lock.lock();
    (status.ok() ? stats_.written_segments : stats_.failed_segments) += count;
    stats_.queued_bytes -= item.bytes;
    writing_ = false;
    changed_.notify_all();
  }
}

}  // namespace fourierkv
