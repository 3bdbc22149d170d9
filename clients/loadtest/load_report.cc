#include "clients/loadtest/load_report.h"

#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace fourierkv::loadtest {
namespace {

// Sending this late (99th percentile) is no longer noise of a busy machine.
constexpr int64_t kLagThatMatters = 10'000'000;  // nanoseconds

std::string Milliseconds(int64_t ns) {
  return absl::StrFormat("%.3f", 1e-6 * static_cast<double>(ns));
}

double PerSecond(uint64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

double GigabytesPerSecond(uint64_t bytes, double seconds) {
  return 1e-9 * PerSecond(bytes, seconds);
}

double Percent(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0 : 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

std::string LoopName(const LoadOptions& o) {
  if (o.closed_loop) {
    return absl::StrFormat(
        "CLOSED LOOP, %d at a time: the next operation waits for an answer, so stalls hide",
        o.concurrency);
  }
  return absl::StrFormat("open loop, %s arrivals at %g/s, latency from the intended send time",
                         o.arrival == ArrivalProcess::kConstant ? "constant" : "Poisson", o.rate);
}

}  // namespace

uint64_t LoadReport::sent() const {
  uint64_t sum = 0;
  for (const KindTotals& kind : totals.kinds) sum += kind.sent;
  return sum;
}

uint64_t LoadReport::failed() const {
  uint64_t sum = 0;
  for (const KindTotals& kind : totals.kinds) sum += kind.failed();
  return sum;
}

uint64_t LoadReport::untolerated() const {
  uint64_t sum = 0;
  for (const auto& [code, count] : totals.failures) {
    if (options.tolerated.count(code) == 0) sum += count;
  }
  return sum;
}

uint64_t LoadReport::sum_offered() const {
  return std::accumulate(offered.begin(), offered.end(), uint64_t{0});
}

uint64_t LoadReport::sum_completed() const {
  return std::accumulate(completed.begin(), completed.end(), uint64_t{0});
}

std::string LoadReport::generator_fault() const {
  std::vector<std::string> faults;
  if (totals.waited > 0) {
    faults.push_back(
        absl::StrCat(totals.waited, " operations waited for one of ", options.concurrency,
                     " slots: the service is beyond its capacity, or --concurrency is too low."));
  }
  if (totals.lag.Quantile(0.99) > kLagThatMatters) {
    faults.push_back(absl::StrCat(
        "The generator fell behind: 1% of operations were sent more than ",
        Milliseconds(totals.lag.Quantile(0.99)),
        " ms late with a slot free; give it more cores or --senders, or a lower --rate."));
  }
  if (unsent > 0) faults.push_back(absl::StrCat(unsent, " operations were not sent at all."));
  return absl::StrJoin(faults, " ");
}

int LoadReport::exit_code() const {
  if (totals.wrong > 0) return kExitWrongBytes;
  return untolerated() > 0 ? kExitErrors : kExitOk;
}

std::string FormatReport(const LoadReport& r) {
  const double s = r.seconds;
  std::string out;
  absl::StrAppendFormat(&out, "%s\n", LoopName(r.options));
  if (r.server.has_value()) {
    absl::StrAppendFormat(&out, "server %s, %s\n", r.server->version, r.server->backend);
  }
  absl::StrAppendFormat(&out, "measured %.2f s after %g s of warm-up%s\n\n", s,
                        r.options.warmup_seconds, r.interrupted ? " (INTERRUPTED)" : "");
  absl::StrAppendFormat(&out, "%-7s %10s %10s %10s %9s   %9s %9s %9s %9s %9s\n", "", "offered/s",
                        "sent/s", "done/s", "failed", "p50 ms", "p90", "p99", "p99.9", "max");
  for (const OpKind kind : kOpKinds) {
    const auto k = static_cast<size_t>(kind);
    const KindTotals& t = r.totals.kinds[k];
    if (r.offered[k] == 0 && t.sent == 0) continue;
    absl::StrAppendFormat(
        &out, "%-7s %10.1f %10.1f %10.1f %9d   %9s %9s %9s %9s %9s\n", OpName(kind),
        PerSecond(r.offered[k], s), PerSecond(t.sent, s), PerSecond(r.completed[k], s), t.failed(),
        Milliseconds(t.latency.Quantile(0.5)), Milliseconds(t.latency.Quantile(0.9)),
        Milliseconds(t.latency.Quantile(0.99)), Milliseconds(t.latency.Quantile(0.999)),
        Milliseconds(t.latency.max()));
  }
  absl::StrAppendFormat(&out, "%-7s %10.1f %10.1f %10.1f %9d\n\n", "all",
                        PerSecond(r.sum_offered(), s), PerSecond(r.sent(), s),
                        PerSecond(r.sum_completed(), s), r.failed());

  absl::StrAppendFormat(&out, "sent      %8.3f GB/s on the wire  %8.3f GB/s dense-equivalent\n",
                        GigabytesPerSecond(r.bytes_sent, s), GigabytesPerSecond(r.dense_sent, s));
  absl::StrAppendFormat(&out, "received  %8.3f GB/s on the wire  %8.3f GB/s dense-equivalent\n",
                        GigabytesPerSecond(r.bytes_received, s),
                        GigabytesPerSecond(r.dense_received, s));
  for (const OpKind kind : {OpKind::kMatch, OpKind::kGet}) {
    const OperationResult& sum = r.totals.kinds[static_cast<size_t>(kind)].sum;
    if (sum.asked_tokens == 0) continue;
    absl::StrAppendFormat(&out, "hit rate  %.2f%% of the tokens that %s asked for\n",
                          Percent(sum.hit_tokens, sum.asked_tokens),
                          kind == OpKind::kMatch ? "matches" : "gets");
  }
  const OperationResult& puts = r.totals.kinds[static_cast<size_t>(OpKind::kPut)].sum;
  if (puts.stored_segments + puts.deduplicated_segments > 0) {
    absl::StrAppendFormat(&out, "puts      %d segments stored, %d were there already\n",
                          puts.stored_segments, puts.deduplicated_segments);
  }
  if (r.options.verify) {
    const OperationResult& gets = r.totals.kinds[static_cast<size_t>(OpKind::kGet)].sum;
    absl::StrAppendFormat(&out, "verified  %.3f GB, %d fetches WRONG\n",
                          1e-9 * static_cast<double>(gets.verified_bytes), r.totals.wrong);
    for (const std::string& message : r.totals.wrong_messages) {
      absl::StrAppendFormat(&out, "  wrong: %s\n", message);
    }
  }
  absl::StrAppendFormat(&out, "generator late by p50 %s ms, p99 %s ms, max %s ms; %.2f cores\n",
                        Milliseconds(r.totals.lag.Quantile(0.5)),
                        Milliseconds(r.totals.lag.Quantile(0.99)), Milliseconds(r.totals.lag.max()),
                        s > 0 ? r.cpu_seconds / s : 0);
  for (const OpKind kind : kOpKinds) {
    const KindTotals& t = r.totals.kinds[static_cast<size_t>(kind)];
    for (const auto& [code, error] : t.errors) {
      absl::StrAppendFormat(&out, "error     %d %ss: %s, first: %s\n", error.count, OpName(kind),
                            absl::StatusCodeToString(code), error.first_message);
    }
    if (t.abandoned > 0) {
      absl::StrAppendFormat(&out, "abandoned %d %ss at the end\n", t.abandoned, OpName(kind));
    }
  }
  if (const std::string fault = r.generator_fault(); !fault.empty()) {
    absl::StrAppendFormat(&out, "NOTE      %s\n", fault);
  }
  return out;
}

}  // namespace fourierkv::loadtest
