// Follows a server's events for as long as it lives.

#pragma once

#include <grpcpp/channel.h>

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "clients/cpp/event_mirror.h"
#include "fourierkv/v1/event_service.grpc.pb.h"

namespace fourierkv {

struct FollowOptions {
  absl::Duration heartbeat = absl::Seconds(1);
  absl::Duration retry = absl::Milliseconds(200);  // between attempts to subscribe
  std::vector<std::string> namespace_keys;         // raw; empty: all
  // Called for every message that was applied, from the follower's thread.
  std::function<void(const v1::SubscribeResponse&)> on_message;
};

// Keeps a mirror of what a server holds: subscribes, applies what comes, and when the call breaks
// or a message does not follow the one before, subscribes again, from where it was or from a
// snapshot. A server that says nothing for three heartbeats is taken for gone. Thread safe.
class EventFollower {
 public:
  struct State {
    bool exact = false;  // of change number `sequence` of `epoch`
    absl::Time heard;    // when the server last spoke; it is told of what happened before
    uint64_t epoch = 0;
    uint64_t sequence = 0;
    uint64_t segments = 0;
    uint64_t snapshots = 0;      // begun so far
    uint64_t gaps = 0;           // messages that did not follow; 0 unless something is broken
    uint64_t subscriptions = 0;  // calls made
    absl::Status last_error;     // that ended a call; OK: none did
  };

  EventFollower(const std::shared_ptr<grpc::Channel>& channel, FollowOptions options);
  ~EventFollower();  // ends the call
  EventFollower(const EventFollower&) = delete;
  EventFollower& operator=(const EventFollower&) = delete;

  State state() const;
  // A copy of the mirror.
  EventMirror mirror() const;
  // Waits until `done` says so, which is asked after every message; false if it does not by
  // `deadline`, or if `give_up`, which is asked with the status that ended a call, says so.
  bool WaitUntil(const std::function<bool(const EventMirror&)>& done, absl::Time deadline,
                 const std::function<bool(const absl::Status&)>& give_up = nullptr) const;

 private:
  void Run();
  absl::Status FollowOnce(grpc::ClientContext& context);
  State StateLocked() const;

  const FollowOptions options_;
  const std::unique_ptr<v1::EventService::Stub> stub_;
  mutable std::mutex mutex_;  // guards what follows
  mutable std::condition_variable changed_;
  bool stopping_ = false;
  grpc::ClientContext* call_ = nullptr;  // the one that runs
  EventMirror mirror_;
  absl::Time heard_ = absl::InfinitePast();
  uint64_t gaps_ = 0;
  uint64_t subscriptions_ = 0;
  absl::Status last_error_;
  std::thread watcher_;  // cancels a call whose server has fallen silent
  std::thread thread_;
};

}  // namespace fourierkv
