// Callers that put, match and fetch sequences whose every byte is known, look at all that comes
// back, and note how each call ended.

#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "clients/cpp/kv_client.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {

struct TrafficOptions {
  std::vector<std::string> servers;  // callers choose one for each call
  int callers = 4;
  // Calls of one caller are due this far apart and their latency counts from then on; zero: each
  // follows the one before.
  absl::Duration every = absl::ZeroDuration();
  absl::Duration deadline = absl::Seconds(10);
  v1::Durability durability = v1::DURABILITY_MEMORY;
  int sequences = 200;  // that are put, again and again; of 3 segments, 48 KB in all
  uint32_t seed = 1;    // of sequences and choices
};

struct CallRecord {
  absl::Time ended;
  absl::Duration latency;  // from when it was due
  absl::Duration late;     // after the deadline; negative: before
  absl::StatusCode code = absl::StatusCode::kOk;
  bool put = false;
  bool reached = false;  // of a put: the durability that was asked for
};

// What a set of calls came to.
struct TrafficSummary {
  explicit TrafficSummary(std::vector<CallRecord> records);

  int calls = 0;
  std::map<absl::StatusCode, int> failures;
  absl::Duration p50, p99, longest;  // of all calls
  absl::Duration latest;             // after their deadline
  int puts_reached = 0;

  int failed() const;
  std::string FailuresText() const;  // "none", or "12 UNAVAILABLE, ..."
};

// Calls from construction to Stop. Thread safe.
class Traffic {
 public:
  // Connects to all servers, aborts the program if that fails, and gives them the codec profile.
  explicit Traffic(TrafficOptions options);
  ~Traffic() { Stop(); }
  Traffic(const Traffic&) = delete;
  Traffic& operator=(const Traffic&) = delete;

  void Stop();

  // Returns once a call that begins from now on has succeeded; false if none does for a minute.
  bool WaitUntilServed();

  // Calls that have ended since this was last called.
  std::vector<CallRecord> Take();

  // Fetches each sequence that a put answered with the durability asked for, from a server that is
  // there; how many, and how many of them are not whole any more. After Stop.
  struct Held {
    int checked = 0;
    int lost = 0;
  };
  Held CheckAcknowledged();

  // What came back and was not what had been put: none, or the service lied.
  std::vector<std::string> wrong() const;
  // Failures that say nothing about when to try again: code and message of the first few.
  std::vector<std::string> not_retryable() const;

 private:
  void Call(int caller);
  absl::Status CallOnce(std::mt19937& random, absl::Time deadline, CallRecord& record);
  absl::Status Put(KvClient& client, uint32_t number, absl::Time deadline, CallRecord& record);
  absl::Status Match(KvClient& client, uint32_t number, absl::Time deadline);
  // How many of the sequence's segments came; Internal if one is wrong.
  absl::StatusOr<int> Get(KvClient& client, uint32_t number, absl::Time deadline);
  Sequence Make(uint32_t number) const;
  void Wrong(const std::string& what);

  const TrafficOptions options_;
  std::vector<std::unique_ptr<KvClient>> clients_;
  std::atomic<bool> stopping_{false};
  std::vector<std::atomic<bool>> acknowledged_;  // by number of the sequence
  mutable std::mutex mutex_;                     // guards what follows
  std::vector<CallRecord> records_;
  absl::Time last_success_ = absl::InfinitePast();  // when it was due
  std::vector<std::string> wrong_;
  std::vector<std::string> not_retryable_;
  std::vector<std::thread> threads_;  // last: they use all of this
};

// Whether a client may try the same again and expect it to work later or elsewhere.
bool IsRetryable(absl::StatusCode code);

}  // namespace fourierkv
