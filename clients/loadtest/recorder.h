// What happened in a run, counted as it happens.

#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "clients/loadtest/latency_histogram.h"
#include "clients/loadtest/operation.h"
#include "clients/loadtest/workload.h"

namespace fourierkv::loadtest {

inline constexpr int kKinds = 3;  // put, get, match

struct CodeCount {
  uint64_t count = 0;
  std::string first_message;
};

// Of one kind of operation, of those whose time to be sent was in the measured window.
struct KindTotals {
  uint64_t sent = 0;
  uint64_t succeeded = 0;
  uint64_t abandoned = 0;  // cancelled by the generator at the end
  // Nanoseconds from the intended time to the end, of operations that succeeded or came to their
  // deadline: those took at least so long. Other failures are quick, and would flatter.
  LatencyHistogram latency;
  std::map<absl::StatusCode, CodeCount> errors;
  OperationResult sum;  // of those that succeeded; `missing` too

  uint64_t failed() const;
};

// Since the run began, whatever the window.
struct Progress {
  std::array<uint64_t, kKinds> succeeded{};
  uint64_t failed = 0;
  uint64_t dense_sent = 0;
  uint64_t dense_received = 0;
};

struct RunTotals {
  std::array<KindTotals, kKinds> kinds;
  // How late operations were sent for which a slot was free at once.
  LatencyHistogram lag;
  uint64_t waited = 0;                      // operations that were due while all slots were taken
  uint64_t wrong = 0;                       // in and out of the window
  std::vector<std::string> wrong_messages;  // the first few
  std::map<absl::StatusCode, uint64_t> failures;  // in and out of the window
};

// Thread safe.
class Recorder {
 public:
  void Sent(OpKind kind, bool measured, int64_t lag_ns, bool waited);
  void Ended(OpKind kind, bool measured, int64_t latency_ns, const OperationResult& result,
             bool abandoned);

  Progress progress() const;
  // Latencies of all kinds since the last call.
  LatencyHistogram TakeInterval();
  RunTotals totals() const;

 private:
  mutable std::mutex mutex_;
  Progress progress_;
  LatencyHistogram interval_;
  RunTotals totals_;
};

}  // namespace fourierkv::loadtest
