#include "clients/cpp/event_follower.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/time/clock.h"
#include "proto/support/convert.h"
#include "proto/support/grpc_status.h"

namespace fourierkv {

EventFollower::EventFollower(const std::shared_ptr<grpc::Channel>& channel, FollowOptions options)
    : options_(std::move(options)), stub_(v1::EventService::NewStub(channel)) {
  thread_ = std::thread([this] { Run(); });
  watcher_ = std::thread([this] {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopping_) {
      changed_.wait_for(lock, absl::ToChronoNanoseconds(options_.heartbeat));
      if (call_ != nullptr && absl::Now() - heard_ > 3 * options_.heartbeat) call_->TryCancel();
    }
  });
}

EventFollower::~EventFollower() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    if (call_ != nullptr) call_->TryCancel();
  }
  changed_.notify_all();
  thread_.join();
  watcher_.join();
}

void EventFollower::Run() {
  for (;;) {
    grpc::ClientContext context;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_) return;
      call_ = &context;
      heard_ = absl::Now();  // the watch begins
      ++subscriptions_;
    }
    absl::Status status = FollowOnce(context);
    std::unique_lock<std::mutex> lock(mutex_);
    call_ = nullptr;
    last_error_ = std::move(status);
    changed_.notify_all();
    changed_.wait_for(lock, absl::ToChronoNanoseconds(options_.retry),
                      [this] { return stopping_; });
  }
}

absl::Status EventFollower::FollowOnce(grpc::ClientContext& context) {
  v1::SubscribeRequest request;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    request = mirror_.Resume();
  }
  *request.mutable_heartbeat() = ToProto(options_.heartbeat);
  for (const std::string& key : options_.namespace_keys) request.add_namespace_keys(key);
  const auto reader = stub_->Subscribe(&context, request);
  v1::SubscribeResponse message;
  while (reader->Read(&message)) {
    absl::Status applied;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      heard_ = absl::Now();
      applied = mirror_.Apply(message);
      if (!applied.ok()) ++gaps_;
    }
    changed_.notify_all();
    if (!applied.ok()) {
      context.TryCancel();
      reader->Finish();
      return applied;
    }
    if (options_.on_message) options_.on_message(message);
  }
  return FromGrpc(reader->Finish());
}

EventFollower::State EventFollower::StateLocked() const {
  return {.exact = mirror_.exact(),
          .heard = heard_,
          .epoch = mirror_.epoch(),
          .sequence = mirror_.sequence(),
          .segments = mirror_.segments().size(),
          .snapshots = mirror_.snapshots(),
          .gaps = gaps_,
          .subscriptions = subscriptions_,
          .last_error = last_error_};
}

EventFollower::State EventFollower::state() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return StateLocked();
}

EventMirror EventFollower::mirror() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return mirror_;
}

bool EventFollower::WaitUntil(const std::function<bool(const EventMirror&)>& done,
                              absl::Time deadline,
                              const std::function<bool(const absl::Status&)>& give_up) const {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!done(mirror_)) {
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return false;
    if (give_up && give_up(last_error_)) return false;
    changed_.wait_for(lock, absl::ToChronoNanoseconds(std::min(left, absl::Hours(1))));
  }
  return true;
}

}  // namespace fourierkv
