#include "kv_service/rpc/stall_watch.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace fourierkv {

StallWatch::StallWatch(absl::Duration limit) : limit_(limit), thread_([this] { Run(); }) {}

StallWatch::~StallWatch() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stopped_.notify_all();
  thread_.join();
}

void StallWatch::Run() {
  std::unique_lock lock(mutex_);
  while (!stopped_.wait_for(lock, absl::ToChronoNanoseconds(limit_ / 4),
                            [this] { return stopping_; })) {
    const int64_t oldest = absl::ToUnixNanos(absl::Now() - limit_);
    for (Call* call : calls_) {
      if (call->last_progress_ > oldest || call->stalled_.exchange(true)) continue;
      call->context_->TryCancel();
    }
  }
}

StallWatch::Call::Call(StallWatch* watch, grpc::ServerContext* context)
    : watch_(watch), context_(context), last_progress_(absl::GetCurrentTimeNanos()) {
  std::lock_guard lock(watch_->mutex_);
  watch_->calls_.insert(this);
}

StallWatch::Call::~Call() {
  std::lock_guard lock(watch_->mutex_);
  watch_->calls_.erase(this);
}

void StallWatch::Call::Progress() { last_progress_ = absl::GetCurrentTimeNanos(); }

absl::Status StallWatch::Call::status() const {
  if (!stalled_) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat("the client neither sent nor read anything for ",
                                                  absl::FormatDuration(watch_->limit_),
                                                  " (--stall-seconds)"));
}

}  // namespace fourierkv
