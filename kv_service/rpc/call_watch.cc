#include "kv_service/rpc/call_watch.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace fourierkv {
namespace {

constexpr absl::Duration kLookEvery = absl::Milliseconds(5);
// A client that is at its deadline cancels the call, and may be a little earlier than we.
constexpr absl::Duration kClocksDiffer = absl::Milliseconds(50);

}  // namespace

CallWatch::CallWatch(absl::Duration limit, LatencyHistogram* overrun)
    : limit_(limit), overrun_(overrun), thread_([this] { Run(); }) {}

uint64_t CallWatch::asked() const {
  std::lock_guard lock(mutex_);
  return asked_;
}

CallWatch::~CallWatch() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void CallWatch::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !calls_.empty(); });
    if (changed_.wait_for(lock, absl::ToChronoNanoseconds(kLookEvery),
                          [this] { return stopping_; })) {
      return;
    }
    const absl::Time now = absl::Now();
    const int64_t oldest = absl::ToUnixNanos(now - limit_);
    for (auto it = calls_.begin(); it != calls_.end() && !stopping_;) {
      Call* const call = *it;
      const bool works = call->begun_ && call->waits_since_ == Call::kWorks;
      if (call->kind_ != Kind::kFollower && works && IsCancelled(lock, call)) {
        call->end_->Come(now, now + kClocksDiffer >= call->patience_.deadline());
      }
      it = calls_.upper_bound(call);
      if (call->kind_ == Kind::kUnary) continue;
      if (call->waits_since_ > oldest || call->stalled_.exchange(true)) continue;
      call->context_->TryCancel();
    }
  }
}

bool CallWatch::IsCancelled(std::unique_lock<std::mutex>& lock, Call* call) {
  asking_ = call;
  ++asked_;
  lock.unlock();
  const bool cancelled = call->context_->IsCancelled();
  lock.lock();
  asking_ = nullptr;
  answered_.notify_all();
  return cancelled;
}

CallWatch::Call::Call(CallWatch* watch, grpc::ServerContext* context, Kind kind)
    : watch_(watch),
      context_(context),
      kind_(kind),
      patience_(absl::FromChrono(context->deadline()), end_) {  // far away if the caller set none
  {
    std::lock_guard lock(watch_->mutex_);
    watch_->calls_.insert(this);
    if (watch_->calls_.size() > 1) return;  // it looks every few milliseconds while there are any
  }
  watch_->changed_.notify_one();
}

CallWatch::Call::~Call() {
  {
    std::unique_lock lock(watch_->mutex_);
    watch_->answered_.wait(lock, [this] { return watch_->asking_ != this; });
    watch_->calls_.erase(this);
  }
  const absl::Time now = absl::Now();
  if (watch_->overrun_ != nullptr && patience_.end() < now) {
    watch_->overrun_->Record(now - patience_.end());
  }
}

void CallWatch::Call::AwaitClient() { waits_since_ = absl::GetCurrentTimeNanos(); }

void CallWatch::Call::Progress() { waits_since_ = kWorks; }

absl::Status CallWatch::Call::status() const {
  if (!stalled_) return absl::OkStatus();
  return absl::DeadlineExceededError(absl::StrCat("the client neither sent nor read anything for ",
                                                  absl::FormatDuration(watch_->limit_),
                                                  " (--stall-seconds)"));
}

}  // namespace fourierkv
