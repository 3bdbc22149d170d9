// Ends calls whose client has fallen silent.

#pragma once

#include <grpcpp/server_context.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace fourierkv {

// A put whose client sends nothing more, or a fetch that nobody reads, would hold memory and a
// place for as long as the connection lives. Thread safe; must outlive its calls.
class StallWatch {
 public:
  // Calls without progress for `limit` to 1.25 `limit` are cancelled.
  explicit StallWatch(absl::Duration limit);
  ~StallWatch();
  StallWatch(const StallWatch&) = delete;
  StallWatch& operator=(const StallWatch&) = delete;

  absl::Duration limit() const { return limit_; }

  // One call, watched while this lives. Its progress belongs to one thread.
  class Call {
   public:
    Call(StallWatch* watch, grpc::ServerContext* context);
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    // A message was read or written.
    void Progress();
    // Whether the call is over already: cancelled, or past its deadline. Work for it is in vain.
    bool cancelled() const { return context_->IsCancelled(); }
    // OK, or DeadlineExceeded if the call was cancelled for want of progress.
    absl::Status status() const;

   private:
    friend class StallWatch;
    StallWatch* watch_;
    grpc::ServerContext* context_;
    std::atomic<int64_t> last_progress_;  // nanoseconds since the epoch
    std::atomic<bool> stalled_{false};
  };

 private:
  void Run();

  const absl::Duration limit_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable stopped_;
  bool stopping_ = false;
  std::set<Call*> calls_;
  std::thread thread_;
};

}  // namespace fourierkv
