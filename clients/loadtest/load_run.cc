#include "clients/loadtest/load_run.h"

#include <sys/prctl.h>
#include <sys/resource.h>

#include <algorithm>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace fourierkv::loadtest {
namespace {

using std::chrono::milliseconds;

// How soon a stop is noticed.
constexpr milliseconds kSlice(20);
constexpr int kMostFilling = 16;
// Beyond deadlines, for what gRPC has to say.
constexpr std::chrono::seconds kGrace(3);
constexpr std::chrono::seconds kPatienceWhenStopped(1);

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double Seconds(std::chrono::nanoseconds ns) { return 1e-9 * static_cast<double>(ns.count()); }

// What counts within the window whenever it was sent.
struct Snapshot {
  Progress progress;
  uint64_t sent;
  uint64_t received;
  double cpu;

  Snapshot(const Recorder& recorder, const Traffic& traffic)
      : progress(recorder.progress()),
        sent(traffic.sent),
        received(traffic.received),
        cpu(CpuSeconds()) {}
};

}  // namespace

LoadRun::LoadRun(const LoadOptions& options, Target* target, const std::atomic<bool>* stop, Say say)
    : options_(options),
      target_(target),
      stop_(stop),
      say_(std::move(say)),
      workload_({.mix = options.mix,
                 .population = options.population,
                 .zipf = options.zipf,
                 .new_puts = options.new_puts,
                 .seed = options.seed}),
      in_flight_(options.concurrency) {}

bool LoadRun::SleepUntil(Clock::time_point when) const {
  for (auto now = Clock::now(); now < when; now = Clock::now()) {
    if (stopped()) return false;
    std::this_thread::sleep_until(std::min(when, now + kSlice));
  }
  return !stopped();
}

absl::Status LoadRun::Fill() {
  const Clock::time_point begun = Clock::now();
  InFlight filling(std::min(options_.concurrency, kMostFilling));
  std::mutex mutex;  // of `failure` and the counts
  absl::Status failure;
  uint32_t done = 0;
  Clock::time_point next_line = begun + std::chrono::seconds(1);
  const auto failed = [&] {
    std::lock_guard lock(mutex);
    return !failure.ok();
  };
  for (uint32_t rank = options_.population; rank-- > 0;) {
    bool waited = false;
    bool acquired = false;
    while (!acquired && !stopped() && !failed()) {
      acquired = filling.Acquire(Clock::now() + kSlice, &waited);
    }
    if (stopped() || failed()) {
      if (acquired) filling.Release();
      break;
    }
    const SequenceId id = target_->population().Current(workload_.SlotOfRank(rank));
    filling.Launch(MakePut(target_->setup(), target_->stub(rank), id),
                   [&](const OperationResult& result, bool) {
                     std::lock_guard lock(mutex);
                     ++done;
                     filled_segments_ += result.stored_segments;
                     if (failure.ok()) failure = result.status;
                   });
    if (Clock::now() >= next_line) {
      next_line += std::chrono::seconds(1);
      std::lock_guard lock(mutex);
      say_(absl::StrCat("filling: ", done, " of ", options_.population, " sequences"));
    }
  }
  if (stopped() || failed()) filling.CancelAll();
  while (!filling.WaitIdle(Clock::now() + kSlice)) {
    if (stopped()) filling.CancelAll();
  }
  fill_seconds_ = Seconds(Clock::now() - begun);
  if (stopped()) return absl::CancelledError("stopped while filling");
  if (failure.ok()) return absl::OkStatus();
  return {failure.code(),
          absl::StrCat("filling the population failed: ", absl::StatusCodeToString(failure.code()),
                       ": ", failure.message())};
}

std::shared_ptr<Operation> LoadRun::Make(const PlannedOp& op, uint64_t number) {
  Population& population = target_->population();
  const OperationSetup& setup = target_->setup();
  Stub* const stub = target_->stub(number);
  switch (op.kind) {
    case OpKind::kPut:
      return MakePut(setup, stub,
                     op.fresh ? population.Fresh(op.slot) : population.Current(op.slot));
    case OpKind::kGet:
      return MakeGet(setup, stub, population.Current(op.slot));
    case OpKind::kMatch:
      break;
  }
  return MakeMatch(setup, stub, population.Current(op.slot));
}

void LoadRun::Send(const Window& window, const PlannedOp& op, uint64_t number, int64_t intended,
                   bool waited) {
  const bool measured = window.Holds(intended);
  recorder_.Sent(op.kind, measured, window.Now() - intended, waited);
  in_flight_.Launch(Make(op, number), [this, window, kind = op.kind, measured, intended](
                                          const OperationResult& result, bool abandoned) {
    recorder_.Ended(kind, measured, window.Now() - intended, result, abandoned);
  });
}

void LoadRun::SendOpen(const Window& window, int sender) {
  prctl(PR_SET_TIMERSLACK, 1);  // nanoseconds; wake up when asked to
  Arrivals arrivals(options_.arrival, options_.rate, options_.seed);
  for (uint64_t number = 0;; ++number) {
    const int64_t intended = arrivals.Next();
    if (intended >= window.end) return;
    if (number % options_.senders != static_cast<uint64_t>(sender)) continue;
    const PlannedOp op = workload_.Plan(number);
    if (!SleepUntil(window.At(intended))) return;
    bool waited = false;
    // What cannot be sent within the window is not sent: it is counted instead.
    if (!in_flight_.Acquire(window.At(window.end), &waited)) return;
    Send(window, op, number, intended, waited);
  }
}

void LoadRun::SendClosed(const Window& window, int sender) {
  for (uint64_t number = static_cast<uint64_t>(sender); !stopped(); number += options_.senders) {
    const PlannedOp op = workload_.Plan(number);
    bool waited = false;
    if (!in_flight_.Acquire(window.At(window.end), &waited)) return;
    const int64_t now = window.Now();
    if (now >= window.end) {
      in_flight_.Release();
      return;
    }
    Send(window, op, number, now, /*waited=*/false);
  }
}

void LoadRun::SayProgress(double seconds) {
  const Progress now = recorder_.progress();
  const Clock::time_point at = Clock::now();
  const double elapsed = Seconds(at - said_at_);
  std::string line = absl::StrFormat("%6.1f s ", seconds);
  for (const OpKind kind : kOpKinds) {
    const auto k = static_cast<size_t>(kind);
    absl::StrAppendFormat(&line, " %s %.0f/s", OpName(kind),
                          static_cast<double>(now.succeeded[k] - said_.succeeded[k]) / elapsed);
  }
  const LatencyHistogram latency = recorder_.TakeInterval();
  absl::StrAppendFormat(&line, "  p50 %.2f ms  p99 %.2f ms  errors %d  outstanding %d",
                        1e-6 * static_cast<double>(latency.Quantile(0.5)),
                        1e-6 * static_cast<double>(latency.Quantile(0.99)),
                        now.failed - said_.failed, in_flight_.count());
  say_(line);
  said_ = now;
  said_at_ = at;
}

bool LoadRun::Watch(const Window& window, int64_t until) {
  while (!stopped()) {
    const Clock::time_point next =
        std::min(window.At(until), said_at_ + std::chrono::milliseconds(1000));
    if (!SleepUntil(next)) break;
    if (window.Now() >= until) return true;
    SayProgress(1e-9 * static_cast<double>(window.Now() - window.begin));
  }
  return false;
}

void LoadRun::CountOffered(const Window& window, int64_t end, LoadReport& report) const {
  if (options_.closed_loop) {
    for (int k = 0; k < kKinds; ++k) report.offered[k] = report.totals.kinds[k].sent;
    return;
  }
  Arrivals arrivals(options_.arrival, options_.rate, options_.seed);
  for (uint64_t number = 0;; ++number) {
    const int64_t intended = arrivals.Next();
    if (intended >= end) break;
    if (window.Holds(intended)) {
      ++report.offered[static_cast<size_t>(workload_.Plan(number).kind)];
    }
  }
}

void LoadRun::Drain() {
  in_flight_.Stop();
  const auto deadline = Clock::now() + std::chrono::nanoseconds(target_->setup().deadline) + kGrace;
  auto until = stopped() ? Clock::now() + kPatienceWhenStopped : deadline;
  while (!in_flight_.WaitIdle(std::min(until, Clock::now() + kSlice))) {
    if (stopped()) until = std::min(until, Clock::now() + kPatienceWhenStopped);
    if (Clock::now() >= until) break;
  }
  // What is cancelled ends at once: it is gRPC that answers.
  in_flight_.CancelAll();
  while (!in_flight_.WaitIdle(Clock::now() + kSlice)) continue;
}

LoadReport LoadRun::Measure() {
  Window window;
  window.begin = static_cast<int64_t>(1e9 * options_.warmup_seconds);
  window.end = window.begin + static_cast<int64_t>(1e9 * options_.duration_seconds);
  window.start = said_at_ = Clock::now();
  std::vector<std::thread> senders;
  for (int i = 0; i < options_.senders; ++i) {
    senders.emplace_back(
        [this, window, i] { options_.closed_loop ? SendClosed(window, i) : SendOpen(window, i); });
  }
  Watch(window, window.begin);
  const int64_t begin = window.Now();
  const Snapshot before(recorder_, target_->traffic());
  Watch(window, window.end);
  const int64_t end = window.Now();
  const Snapshot after(recorder_, target_->traffic());
  const bool interrupted = stopped();
  in_flight_.Stop();
  for (std::thread& sender : senders) sender.join();
  Drain();

  LoadReport report;
  report.options = options_;
  report.server = target_->server();
  report.interrupted = interrupted;
  report.fill_seconds = fill_seconds_;
  report.filled_segments = filled_segments_;
  report.seconds = 1e-9 * static_cast<double>(end - begin);
  report.totals = recorder_.totals();
  CountOffered(window, std::min(end, window.end), report);
  for (int k = 0; k < kKinds; ++k) {
    report.completed[k] = after.progress.succeeded[k] - before.progress.succeeded[k];
  }
  report.unsent = report.sum_offered() - std::min(report.sum_offered(), report.sent());
  report.bytes_sent = after.sent - before.sent;
  report.bytes_received = after.received - before.received;
  report.dense_sent = after.progress.dense_sent - before.progress.dense_sent;
  report.dense_received = after.progress.dense_received - before.progress.dense_received;
  report.cpu_seconds = after.cpu - before.cpu;
  return report;
}

}  // namespace fourierkv::loadtest
