// Stops a server with SIGTERM under load, again and again: every call that fails says that it can
// be tried again, the server ends in time and by itself, and what it had answered as DISK is there
// when the next one starts.
//
//   drain_suite --cycles 200     about ten minutes

#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/compute/model/temp_folder.h"
#include "tests/reliability/figures.h"
#include "tests/reliability/server_process.h"
#include "tests/reliability/slow_readers.h"
#include "tests/reliability/traffic.h"

namespace fourierkv {
namespace {

constexpr int kDrainMs = 500;
// A drain, what may still be written to disk after it, and the end of a process on a busy machine.
constexpr absl::Duration kLongestStop = absl::Seconds(4);

int Run(int cycles, uint32_t seed) {
  std::printf("seed %u\n", seed);
  std::fflush(stdout);
  std::mt19937 random(seed);
  const TempFolder folder;
  ServerProcess server({"--metrics", "", "--memory", "128MB", "--disk-path",
                        folder.path() + "/disk", "--disk-bytes", "1GB", "--drain-seconds",
                        absl::StrCat(kDrainMs / 1000.0)});
  Traffic traffic({.servers = {server.address()},
                   .callers = 8,
                   .durability = v1::DURABILITY_DISK,
                   .sequences = 2000,
                   .seed = seed});
  absl::Duration longest_stop = absl::ZeroDuration();
  int ended_well = 0;
  bool served = true;
  std::string readers_failure;
  for (int cycle = 0; cycle < cycles; ++cycle) {
    // Every fourth drain has calls that do not end by themselves.
    std::unique_ptr<SlowReaders> readers;
    if (cycle % 4 == 3) {
      readers = std::make_unique<SlowReaders>(server.address(), 2, absl::Seconds(1));
    }
    served = traffic.WaitUntilServed() && served;
    absl::SleepFor(absl::Milliseconds(random() % 500));
    const absl::Time stopped = absl::Now();
    server.process().Signal(SIGTERM);
    if (server.process().Wait(absl::Seconds(60)) == 0) ++ended_well;
    longest_stop = std::max(longest_stop, absl::Now() - stopped);
    if (readers != nullptr && readers_failure.empty()) readers_failure = readers->not_retryable();
    readers.reset();
    server.Restart();
  }
  traffic.Stop();
  const TrafficSummary calls(traffic.Take());
  const Traffic::Held held = traffic.CheckAcknowledged();

  Figures figures;
  figures.Note("calls", absl::StrCat(calls.calls));
  figures.Note("calls that failed", calls.FailuresText());
  figures.Promise("drains that ended with status 0", absl::StrCat(ended_well), absl::StrCat(cycles),
                  ended_well == cycles);
  figures.Promise("calls served again after each", served ? "yes" : "no", "yes", served);
  figures.Promise("kinds of failures that are not retryable",
                  absl::StrCat(traffic.not_retryable().size() + (readers_failure.empty() ? 0 : 1)),
                  "0", traffic.not_retryable().empty() && readers_failure.empty());
  figures.Promise("wrong answers", absl::StrCat(traffic.wrong().size()), "0",
                  traffic.wrong().empty());
  figures.Promise("sequences answered as DISK and lost",
                  absl::StrCat(held.lost, " of ", held.checked), "0", held.lost == 0);
  figures.Target("longest drain", Milliseconds(longest_stop),
                 absl::StrCat("<= ", Milliseconds(kLongestStop)), longest_stop <= kLongestStop);
  for (const std::string& what : traffic.not_retryable()) std::printf("%s\n", what.c_str());
  if (!readers_failure.empty()) std::printf("of a slow reader: %s\n", readers_failure.c_str());
  return figures.Finish(false);
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  CLI::App app("Drains a server under load");
  int cycles = 200;
  uint32_t seed = std::random_device{}();
  app.add_option("--cycles", cycles)->check(CLI::Range(1, 100000))->capture_default_str();
  app.add_option("--seed", seed);
  CLI11_PARSE(app, argc, argv);
  return fourierkv::Run(cycles, seed);
}
