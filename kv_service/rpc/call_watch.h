// Knows which calls are over, and ends those whose client has fallen silent.

#pragma once

#include <grpcpp/server_context.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kv_service/core/latency_histogram.h"
#include "kv_service/core/patience.h"

namespace fourierkv {

// A put whose client sends nothing more, or a fetch that nobody reads, would hold memory and a
// place for as long as the connection lives. And a call that was cancelled would go on working for
// nobody: gRPC tells that to who asks, so this asks for all calls that work every few milliseconds.
// Asking costs tens of microseconds, so it does not for those that wait: for their turn, which they
// get in time, or for their clients, since gRPC ends what it waits for itself. Clients that hardly
// read cost nothing. Thread safe; must outlive its calls.
class CallWatch {
 public:
  // Streams that wait for their clients for `limit` and a little longer are cancelled. `overrun`,
  // which may be null, counts how long calls went on after they were over.
  explicit CallWatch(absl::Duration limit, LatencyHistogram* overrun = nullptr);
  ~CallWatch();
  CallWatch(const CallWatch&) = delete;
  CallWatch& operator=(const CallWatch&) = delete;

  absl::Duration limit() const { return limit_; }
  // How often gRPC has been asked.
  uint64_t asked() const;

  enum class Kind {
    kUnary,
    kStream,    // may not wait for its client for long
    kFollower,  // the same, but works so little that nobody asks whether it is over
  };

  // One call, watched while this lives. Used by one thread.
  class Call {
   public:
    Call(CallWatch* watch, grpc::ServerContext* context, Kind kind);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    // From now on it works.
    void Begin() { begun_ = true; }
    // From now on it waits for its client, to send something or to read.
    void AwaitClient();
    // A message was read or written. However long it works now, or waits for its turn or for a
    // tier, that is not its client's fault.
    void Progress();
    // Lasts until the call's deadline, if it has one, or its cancellation.
    const Patience& patience() const { return patience_; }
    // OK, or DeadlineExceeded if the call was cancelled since its client was silent.
    absl::Status status() const;

   private:
    friend class CallWatch;
    static constexpr int64_t kWorks = std::numeric_limits<int64_t>::max();
    CallWatch* const watch_;
    grpc::ServerContext* const context_;
    const Kind kind_;
    const std::shared_ptr<CallEnd> end_ = std::make_shared<CallEnd>();
    const Patience patience_;
    std::atomic<int64_t> waits_since_{kWorks};  // nanoseconds since the epoch
    std::atomic<bool> begun_{false};
    std::atomic<bool> stalled_{false};
  };

 private:
  void Run();
  // Lets go of the lock meanwhile.
  bool IsCancelled(std::unique_lock<std::mutex>& lock, Call* call);

  const absl::Duration limit_;
  LatencyHistogram* const overrun_;
  mutable std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  bool stopping_ = false;
  std::set<Call*> calls_;
  uint64_t asked_ = 0;
  Call* asking_ = nullptr;  // gRPC is being asked for it: it must stay
  std::condition_variable answered_;
  std::thread thread_;
};

}  // namespace fourierkv
