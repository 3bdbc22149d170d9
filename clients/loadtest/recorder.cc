#include "clients/loadtest/recorder.h"

#include <utility>

namespace fourierkv::loadtest {
namespace {

constexpr size_t kMostMessages = 10;

}  // namespace

uint64_t KindTotals::failed() const {
  uint64_t sum = 0;
  for (const auto& [code, error] : errors) sum += error.count;
  return sum;
}

void Recorder::Sent(OpKind kind, bool measured, int64_t lag_ns, bool waited) {
  if (!measured) return;
  std::lock_guard lock(mutex_);
  ++totals_.kinds[static_cast<size_t>(kind)].sent;
  if (waited) {
    ++totals_.waited;
  } else {
    totals_.lag.Record(lag_ns);
  }
}

void Recorder::Ended(OpKind kind, bool measured, int64_t latency_ns, const OperationResult& result,
                     bool abandoned) {
  std::lock_guard lock(mutex_);
  KindTotals& totals = totals_.kinds[static_cast<size_t>(kind)];
  if (result.wrong) {
    ++totals_.wrong;
    if (totals_.wrong_messages.size() < kMostMessages) {
      totals_.wrong_messages.emplace_back(result.status.message());
    }
  }
  if (abandoned && absl::IsCancelled(result.status)) {
    totals.abandoned += measured ? 1 : 0;
    return;
  }
  if (result.status.ok() || absl::IsDeadlineExceeded(result.status)) {
    interval_.Record(latency_ns);
    if (measured) totals.latency.Record(latency_ns);
  }
  if (result.status.ok()) {
    ++progress_.succeeded[static_cast<size_t>(kind)];
    progress_.dense_sent += result.dense_sent;
    progress_.dense_received += result.dense_received;
    if (!measured) return;
    ++totals.succeeded;
    totals.sum.Add(result);
    return;
  }
  ++progress_.failed;
  ++totals_.failures[result.status.code()];
  if (!measured) return;
  CodeCount& error = totals.errors[result.status.code()];
  if (error.count++ == 0) error.first_message = std::string(result.status.message());
}

Progress Recorder::progress() const {
  std::lock_guard lock(mutex_);
  return progress_;
}

LatencyHistogram Recorder::TakeInterval() {
  LatencyHistogram interval;
  std::lock_guard lock(mutex_);
  std::swap(interval, interval_);
  return interval;
}

RunTotals Recorder::totals() const {
  std::lock_guard lock(mutex_);
  return totals_;
}

}  // namespace fourierkv::loadtest
