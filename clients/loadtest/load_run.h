// A load test on a connected target.

#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "clients/loadtest/in_flight.h"
#include "clients/loadtest/load_options.h"
#include "clients/loadtest/load_report.h"
#include "clients/loadtest/recorder.h"
#include "clients/loadtest/target.h"
#include "clients/loadtest/workload.h"

namespace fourierkv::loadtest {

// Used by one thread; `stop` may be set by any. Nothing waits longer than the deadline of an
// operation and a few seconds, however the service behaves.
class LoadRun {
 public:
  using Say = std::function<void(const std::string& line)>;

  // All outlive the run. `options` are those that the target was connected with; `say` gets a line
  // of progress each second.
  LoadRun(const LoadOptions& options, Target* target, const std::atomic<bool>* stop, Say say);

  // Puts every sequence of the population, the most popular ones last. The first failure ends it
  // and is returned; Cancelled if it was stopped.
  absl::Status Fill();

  // Warms up, measures, and waits for what is in flight. Once. When `stop` is set it ends early,
  // with what it has.
  LoadReport Measure();

 private:
  using Clock = InFlight::Clock;
  // Nanoseconds from the start of the warm-up: the window is [begin, end).
  struct Window {
    Clock::time_point start;
    int64_t begin = 0;
    int64_t end = 0;

    bool Holds(int64_t at) const { return at >= begin && at < end; }
    int64_t Now() const { return (Clock::now() - start) / std::chrono::nanoseconds(1); }
    Clock::time_point At(int64_t ns) const { return start + std::chrono::nanoseconds(ns); }
  };

  bool stopped() const { return stop_->load(std::memory_order_relaxed); }
  // False if it was stopped before then.
  bool SleepUntil(Clock::time_point when) const;
  std::shared_ptr<Operation> Make(const PlannedOp& op, uint64_t number);
  void SendOpen(const Window& window, int sender);
  void SendClosed(const Window& window, int sender);
  void Send(const Window& window, const PlannedOp& op, uint64_t number, int64_t intended,
            bool waited);
  void CountOffered(const Window& window, int64_t end, LoadReport& report) const;
  // Says progress until `until`; false if it was stopped before.
  bool Watch(const Window& window, int64_t until);
  void SayProgress(double seconds);
  void Drain();

  const LoadOptions& options_;
  Target* const target_;
  const std::atomic<bool>* const stop_;
  const Say say_;
  const Workload workload_;
  Recorder recorder_;
  InFlight in_flight_;
  Progress said_;  // what the last line of progress was about
  Clock::time_point said_at_;
  uint64_t filled_segments_ = 0;
  double fill_seconds_ = 0;
};

}  // namespace fourierkv::loadtest
