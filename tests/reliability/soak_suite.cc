// Mixed load for a long time on a server whose memory and disk are too small for it, so that it
// evicts, writes behind and reads again all the time: memory, descriptors and latency do not drift.
//
//   soak_suite --seconds 3600

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/compute/model/temp_folder.h"
#include "tests/reliability/figures.h"
#include "tests/reliability/server_process.h"
#include "tests/reliability/traffic.h"

namespace fourierkv {
namespace {

struct Sample {
  absl::Time at;
  ProcessFigures process;
};

// Of the samples in [begin, end).
int64_t MedianResident(const std::vector<Sample>& samples, absl::Time begin, absl::Time end) {
  std::vector<int64_t> bytes;
  for (const Sample& sample : samples) {
    if (sample.at >= begin && sample.at < end) bytes.push_back(sample.process.resident_bytes);
  }
  if (bytes.empty()) return 0;
  std::ranges::nth_element(bytes, bytes.begin() + static_cast<int64_t>(bytes.size() / 2));
  return bytes[bytes.size() / 2];
}

// The largest of the same.
int64_t LargestResident(const std::vector<Sample>& samples, absl::Time begin, absl::Time end) {
  int64_t largest = 0;
  for (const Sample& sample : samples) {
    if (sample.at >= begin && sample.at < end) {
      largest = std::max(largest, sample.process.resident_bytes);
    }
  }
  return largest;
}

// What is needed in most minutes of [begin, end): the median of the largest in each. What the disk
// tier gathers grows to 64 MiB and is then gone, about once a minute; where in that a period begins
// and ends would be much of any other mean.
double NeededResident(const std::vector<Sample>& samples, absl::Time begin, absl::Time end) {
  const int64_t minutes = std::max<int64_t>(1, (end - begin) / absl::Minutes(1));
  std::vector<int64_t> largest;
  for (int64_t i = 0; i < minutes; ++i) {
    largest.push_back(LargestResident(samples, begin + (end - begin) * i / minutes,
                                      begin + (end - begin) * (i + 1) / minutes));
  }
  std::ranges::nth_element(largest, largest.begin() + minutes / 2);
  return static_cast<double>(std::max<int64_t>(1, largest[minutes / 2]));
}

absl::Duration P99(const std::vector<CallRecord>& calls, absl::Time begin, absl::Time end) {
  std::vector<CallRecord> within;
  for (const CallRecord& call : calls) {
    if (call.ended >= begin && call.ended < end) within.push_back(call);
  }
  return TrafficSummary(std::move(within)).p99;
}

int Run(int seconds, uint32_t seed, bool strict) {
  std::printf("seed %u\n", seed);
  std::fflush(stdout);
  const TempFolder folder;
  ServerProcess server({"--metrics", "", "--memory", "64MB", "--scratch-memory", "16MB",
                        "--disk-path", folder.path() + "/disk", "--disk-bytes", "128MB",
                        "--event-log", "10000"});
  // 300 MB of sequences; durability DISK at times only, as the service writes behind in any case.
  TrafficOptions mix{.servers = {server.address()}, .callers = 4, .sequences = 6000, .seed = seed};
  Traffic disk({.servers = {server.address()},
                .callers = 1,
                .every = absl::Milliseconds(100),
                .durability = v1::DURABILITY_DISK,
                .sequences = 500,
                .seed = seed + 1});
  std::vector<Sample> samples;
  const auto sample_until = [&](absl::Time end) {
    while (absl::Now() < end) {
      samples.push_back({absl::Now(), server.Look()});
      absl::SleepFor(absl::Milliseconds(250));
    }
  };
  // A quarter to warm up, as fast as it goes: every sequence was put, and all that is bounded is
  // full (the budgets, and the latest removals and events). Then the first quarter of what is left
  // against the last.
  const absl::Time begun = absl::Now();
  const absl::Time warm = begun + absl::Seconds(seconds) / 4;
  Traffic filling(mix);
  sample_until(warm);
  filling.Stop();

  mix.every = absl::Milliseconds(20);
  Traffic memory(mix);
  sample_until(begun + absl::Seconds(seconds));
  memory.Stop();
  disk.Stop();
  const std::vector<CallRecord> calls = memory.Take();

  const absl::Duration quarter = absl::Seconds(seconds) * 3 / 16;
  const absl::Time last = begun + absl::Seconds(seconds) - quarter;
  const absl::Time end = begun + absl::Seconds(seconds);
  const double resident_drift =
      NeededResident(samples, last, end) / NeededResident(samples, warm, warm + quarter) - 1;
  const absl::Duration first_p99 = P99(calls, warm, warm + quarter);
  const absl::Duration last_p99 = P99(calls, last, absl::InfiniteFuture());
  const double p99_drift = absl::FDivDuration(last_p99, first_p99) - 1;
  int64_t fewest = samples.back().process.descriptors;
  int64_t most = fewest;
  for (const Sample& sample : samples) {
    if (sample.at < warm) continue;
    fewest = std::min(fewest, sample.process.descriptors);
    most = std::max(most, sample.process.descriptors);
  }
  const TrafficSummary filled(filling.Take());
  const TrafficSummary all(calls);
  const TrafficSummary durable(disk.Take());
  const bool wrong = !filling.wrong().empty() || !memory.wrong().empty() || !disk.wrong().empty();

  Figures figures;
  figures.Note("calls", absl::StrCat(filled.calls, " to warm up, then ", all.calls, " and ",
                                     durable.calls, " with DISK"));
  figures.Promise("calls that failed",
                  absl::StrCat(filled.FailuresText(), ", ", all.FailuresText(), " and ",
                               durable.FailuresText()),
                  "none", filled.failed() + all.failed() + durable.failed() == 0);
  figures.Promise("wrong answers", wrong ? "some" : "0", "0", !wrong);
  std::string resident;
  std::string largest;
  for (int eighth = 0; eighth < 8; ++eighth) {
    const absl::Duration length = absl::Seconds(seconds) / 8;
    const absl::Time from = begun + eighth * length;
    absl::StrAppend(&resident, " ", MedianResident(samples, from, from + length) >> 20);
    absl::StrAppend(&largest, " ", LargestResident(samples, from, from + length) >> 20);
  }
  figures.Note("resident in each eighth, MiB", resident);
  figures.Note("at most in each eighth, MiB", largest);
  figures.Target("resident memory, drift since", Percent(resident_drift), "<= 1.0%",
                 resident_drift <= 0.01);
  // RocksDB's files come and go.
  figures.Note("descriptors after warm-up", absl::StrCat(fewest, " to ", most));
  figures.Promise("descriptors at the end", absl::StrCat(samples.back().process.descriptors),
                  absl::StrCat("<= ", fewest + 32),
                  samples.back().process.descriptors <= fewest + 32);
  figures.Note("p50 / p99 of all",
               absl::StrCat(Milliseconds(all.p50), " / ", Milliseconds(all.p99)));
  figures.Note("p99 after warm-up", Milliseconds(first_p99));
  figures.Target("p99, drift since", Percent(p99_drift), "<= 10.0%", p99_drift <= 0.1);
  return figures.Finish(strict);
}

}  // namespace
}  // namespace fourierkv

int main(int argc, char** argv) {
  CLI::App app("Loads a server for a long time and looks for what drifts");
  int seconds = 3600;
  uint32_t seed = std::random_device{}();
  bool strict = false;
  app.add_option("--seconds", seconds)->check(CLI::Range(4, 1000000))->capture_default_str();
  app.add_option("--seed", seed);
  app.add_flag("--strict", strict, "Missed targets of time and memory fail, too");
  CLI11_PARSE(app, argc, argv);
  return fourierkv::Run(seconds, seed, strict);
}
