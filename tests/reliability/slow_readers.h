// Clients that fetch much and read it slowly.

#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "fourierkv/v1/kv_cache_service.grpc.pb.h"

namespace fourierkv {

// Puts sequences of its own and then fetches them all in one call, `count` times at once, reading a
// message of up to 1 MiB every `pause`, each at a moment of its own; again when all has come. From
// construction to destruction.
class SlowReaders {
 public:
  // Aborts the program if there is no server.
  SlowReaders(const std::string& server, int count, absl::Duration pause);
  ~SlowReaders();
  SlowReaders(const SlowReaders&) = delete;
  SlowReaders& operator=(const SlowReaders&) = delete;

  int64_t bytes_read() const { return bytes_read_; }
  // The first failure that is not retryable; "" if there was none.
  std::string not_retryable() const;

 private:
  void Pause(absl::Duration pause) const;  // or until they stop
  void Read(v1::KvCacheService::Stub& stub, const v1::GetSegmentsRequest& request);

  const absl::Duration pause_;
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> bytes_read_{0};
  mutable std::mutex mutex_;  // guards what follows
  std::vector<grpc::ClientContext*> running_;
  std::string not_retryable_;
  std::vector<std::thread> threads_;  // last: they use all of this
};

}  // namespace fourierkv
