// A server in a memory cgroup that gives it what docs/operations.md says it needs, with 64 clients
// that fetch and hardly read, and then with twice the load that it can serve: others are answered
// as before, memory holds, useful work goes on, and soon after all is as it was.
//
//   overload_suite --seconds 600     of overload; about a quarter more in all

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "tests/reliability/figures.h"
#include "tests/reliability/server_process.h"
#include "tests/reliability/slow_readers.h"
#include "tests/reliability/traffic.h"

namespace fourierkv {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kMemory = 128 * kMiB;
constexpr int64_t kScratch = 64 * kMiB;
constexpr int kReaders = 64;
constexpr int kCalls = 512;       // of the flood, at the same time
constexpr int kBurstSeconds = 2;  // in which slow readers fill sockets and windows, as fast as any
// docs/operations.md
constexpr int64_t kNeeded =
    (kMemory + kScratch) * 11 / 10 + 256 * kMiB + (kReaders + kCalls) * kMiB;

struct Flood {
  double achieved_per_second = 0;
  nlohmann::json failures;
  std::string error;  // of the generator
};

// fourierkv-loadtest with these flags.
Flood RunFlood(const std::string& server, int seconds, std::vector<std::string> flags) {
  std::vector<std::string> all = {"--server",
                                  server,
                                  "--duration",
                                  absl::StrCat(seconds),
                                  "--output",
                                  "json",
                                  "--population",
                                  "50",
                                  "--value-tokens",
                                  "1024",
                                  "--mix",
                                  "1:4:4",
                                  "--deadline",
                                  "1",
                                  "--layers",
                                  "4",
                                  "--quiet",
                                  "--tolerate",
                                  "UNAVAILABLE,RESOURCE_EXHAUSTED,DEADLINE_EXCEEDED"};
  all.insert(all.end(), flags.begin(), flags.end());
  Subprocess loadtest("fourierkv-loadtest", all);
  const int status = loadtest.Wait(absl::Seconds(seconds + 120));
  const auto json = nlohmann::json::parse(loadtest.out(), nullptr, /*allow_exceptions=*/false);
  if (status != 0 || json.is_discarded()) return {0, {}, loadtest.err() + loadtest.out()};
  return {json["achieved_per_second"].get<double>(), json["failures_in_and_outside_window"], ""};
}

// SlowReaders in a process of their own, and with less of a right to this machine, since they stand
// for other machines: what they take of it would be taken from those who are measured.
class SlowReadersProcess {
 public:
  explicit SlowReadersProcess(const std::string& server)
      : process_(kThisProgram, {"--read-slowly", server}) {
    const absl::Time limit = absl::Now() + absl::Seconds(60);
    while (process_.out().empty() && process_.Wait(absl::Milliseconds(20)) < 0 &&
           absl::Now() < limit) {
    }
  }

  // Of that process, until SIGTERM.
  static int Main(const std::string& server) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    errno = 0;
    if (nice(10) == -1 && errno != 0) return 1;
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &term, nullptr);
    const SlowReaders readers(server, kReaders, absl::Seconds(1));
    std::printf("reading\n");
    std::fflush(stdout);
    int signal = 0;
    sigwait(&term, &signal);
    const std::string failure = readers.not_retryable();
    std::printf("%s\n%s\n", Mebibytes(readers.bytes_read()).c_str(),
                failure.empty() ? "none" : failure.c_str());
    return 0;
  }

  struct Result {
    std::string bytes = "nothing";
    std::string failure = "the readers' process failed";  // the first that is not retryable
  };
  Result Stop() {
    process_.Signal(SIGTERM);
    if (process_.Wait() != 0) return {};
    const std::vector<std::string> lines = absl::StrSplit(process_.out(), '\n');
    if (lines.size() < 3) return {};
    return {lines[1], lines[2]};
  }

 private:
  static constexpr char kThisProgram[] = "../tests/reliability/overload_suite";
  Subprocess process_;
};

// How long after `ended` it took until a second's calls were all well and no slower than `well` but
// for one in a hundred.
std::optional<absl::Duration> Recovery(const std::vector<CallRecord>& calls, absl::Time ended,
                                       absl::Duration well) {
  for (absl::Duration after = absl::ZeroDuration(); after < absl::Seconds(30);
       after += absl::Milliseconds(100)) {
    std::vector<CallRecord> second;
    for (const CallRecord& call : calls) {
      const absl::Time due = call.ended - call.latency;
      if (due >= ended + after && due < ended + after + absl::Seconds(1)) second.push_back(call);
    }
    if (second.size() < 50) continue;
    const TrafficSummary summary(std::move(second));
    if (summary.failed() == 0 && summary.p99 <= well) return after;
  }
  return std::nullopt;
}

int Run(int seconds, int64_t most_memory, uint32_t seed, bool strict) {
  std::printf("seed %u\n", seed);
  std::fflush(stdout);
  const MemoryCap cap(most_memory);
  ServerProcess server({"--metrics", "", "--memory", absl::StrCat(kMemory), "--scratch-memory",
                        absl::StrCat(kScratch)});
  const bool capped = cap.Take(server.process().pid());
  const int quiet_seconds = std::max(10, seconds / 12);

  // Those others: calls of a few KB that are due at fixed times.
  Traffic others({.servers = {server.address()},
                  .callers = 4,
                  .every = absl::Milliseconds(20),
                  .deadline = absl::Seconds(1),
                  .sequences = 100,
                  .seed = seed});
  const auto listen = [&](int for_seconds) {
    others.Take();
    absl::SleepFor(absl::Seconds(for_seconds));
    return TrafficSummary(others.Take());
  };
  listen(2);
  const TrafficSummary quiet = listen(quiet_seconds);
  SlowReadersProcess readers(server.address());
  const TrafficSummary beside_burst = listen(kBurstSeconds);
  const TrafficSummary beside_readers = listen(quiet_seconds);
  // What the server can do on this machine, beside all those and the generator.
  const Flood most =
      RunFlood(server.address(), quiet_seconds, {"--closed-loop", "--concurrency", "32"});
  others.Take();
  const Flood twice =
      RunFlood(server.address(), seconds,
               {"--rate", absl::StrFormat("%.1f", std::max(1.0, 2 * most.achieved_per_second)),
                "--concurrency", absl::StrCat(kCalls), "--no-fill"});
  const absl::Time ended = absl::Now();
  const TrafficSummary overloaded(others.Take());
  absl::SleepFor(absl::Seconds(10));
  const auto after = others.Take();
  const SlowReadersProcess::Result read = readers.Stop();
  others.Stop();
  const bool alive = server.process().Wait(absl::ZeroDuration()) < 0;
  const int64_t peak = server.Look().peak_resident_bytes;

  const double slower = absl::FDivDuration(beside_readers.p99, quiet.p99);
  const double goodput = twice.achieved_per_second / std::max(1.0, most.achieved_per_second);
  const auto recovery = Recovery(after, ended, 2 * beside_readers.p99);
  int other_failures = 0;
  for (const auto& [code, count] : overloaded.failures) {
    other_failures += IsRetryable(code) || code == absl::StatusCode::kDeadlineExceeded ? 0 : count;
  }

  Figures figures;
  figures.Note("memory", absl::StrCat(capped ? "capped by a cgroup at " : "watched, no cgroup: ",
                                      Mebibytes(most_memory)));
  figures.Promise("load generator's errors", absl::StrCat(most.error, twice.error), "",
                  most.error.empty() && twice.error.empty());
  figures.Promise("server", alive ? "alive" : "gone", "alive", alive);
  figures.Promise("its peak resident memory", Mebibytes(peak),
                  absl::StrCat("<= ", Mebibytes(most_memory)), alive && peak <= most_memory);
  figures.Note("capacity beside others, operations/s",
               absl::StrFormat("%.0f", most.achieved_per_second));
  figures.Note("others alone, p50 / p99",
               absl::StrCat(Milliseconds(quiet.p50), " / ", Milliseconds(quiet.p99)));
  figures.Note("while slow readers begin, p50 / p99",
               absl::StrCat(Milliseconds(beside_burst.p50), " / ", Milliseconds(beside_burst.p99)));
  figures.Note(
      "beside slow readers, p50 / p99",
      absl::StrCat(Milliseconds(beside_readers.p50), " / ", Milliseconds(beside_readers.p99)));
  figures.Target("others' p99 beside slow readers", absl::StrFormat("%.2f x", slower), "<= 1.20 x",
                 slower <= 1.2);
  figures.Target("others' failures before the overload",
                 absl::StrCat(quiet.FailuresText(), ", ", beside_burst.FailuresText(), " and ",
                              beside_readers.FailuresText()),
                 "none", quiet.failed() + beside_burst.failed() + beside_readers.failed() == 0);
  figures.Note("read by slow readers", read.bytes);
  figures.Promise("their failures", read.failure, "none", read.failure == "none");
  figures.Note("overload, p50 / p99 of others",
               absl::StrCat(Milliseconds(overloaded.p50), " / ", Milliseconds(overloaded.p99)));
  figures.Promise("others' failures in overload", overloaded.FailuresText(), "retryable or late",
                  other_failures == 0);
  figures.Note("the flood's failures", twice.failures.dump());
  figures.Target("goodput in overload", Percent(goodput), ">= 80.0%", goodput >= 0.8);
  figures.Target("recovery",
                 recovery.has_value() ? absl::FormatDuration(*recovery) : "none within 10 s",
                 "<= 5s", recovery.has_value() && *recovery <= absl::Seconds(5));
  figures.Promise("wrong answers", absl::StrCat(others.wrong().size()), "0",
                  others.wrong().empty());
  return figures.Finish(strict);
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  CLI::App app("Overloads a server");
  int seconds = 600;
  uint32_t seed = std::random_device{}();
  int64_t most_memory = fourierkv::kNeeded;
  bool strict = false;
  std::string read_slowly;
  app.add_option("--read-slowly", read_slowly)->group("");  // of SlowReadersProcess
  app.add_option("--cap", most_memory, "Bytes of the cgroup")->capture_default_str();
  app.add_option("--seconds", seconds)->check(CLI::Range(2, 100000))->capture_default_str();
  app.add_option("--seed", seed);
  app.add_flag("--strict", strict, "Missed targets of time fail, too");
  CLI11_PARSE(app, argc, argv);
  if (!read_slowly.empty()) return fourierkv::SlowReadersProcess::Main(read_slowly);
  return fourierkv::Run(seconds, most_memory, seed, strict);
}
