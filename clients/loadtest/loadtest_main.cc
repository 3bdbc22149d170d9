// fourierkv-loadtest: how much a FourierKV service bears, and how fast it answers meanwhile.

#include <signal.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "clients/loadtest/load_report.h"
#include "clients/loadtest/load_run.h"
#include "clients/loadtest/loadtest_flags.h"
#include "clients/loadtest/target.h"
#include "compute/base/signal_thread.h"

namespace fourierkv::loadtest {
namespace {

std::atomic<bool> stop{false};

// The first signal ends the run with what it has; the second one the process.
void StopOnSignals() {
  HandleSignals({SIGINT, SIGTERM}, [](int number) {
    if (!stop.exchange(true)) return;
    std::_Exit(128 + number);
  });
}

absl::StatusOr<int> Run(const LoadFlags& flags, const std::string& command_line) {
  absl::StatusOr<std::unique_ptr<Target>> target = Target::Connect(flags.options);
  if (!target.ok()) return target.status();
  LoadRun run(flags.options, target->get(), &stop, [&](const std::string& line) {
    if (!flags.quiet) std::fprintf(stderr, "%s\n", line.c_str());
  });
  if (flags.options.fill) {
    if (absl::Status s = run.Fill(); !s.ok()) return s;
  }
  LoadReport report = run.Measure();
  report.command_line = command_line;
  const std::string text =
      flags.output == "json" ? ReportJson(report) + "\n" : FormatReport(report);
  std::fputs(text.c_str(), stdout);
  return report.exit_code();
}

}  // namespace
}  // namespace fourierkv::loadtest

int main(int argc, char** argv) {
  using namespace fourierkv::loadtest;  // NOLINT(google-build-using-namespace)
  CLI::App app{
      "Loads a FourierKV service with puts, gets and matches, and reports throughput and latency. "
      "Exit status 0: all went well; 1: operations failed; 2: it could not run; 3: fetched values "
      "were wrong (--verify).",
      "fourierkv-loadtest"};
  LoadFlags flags;
  DeclareLoadFlags(app, flags);
  CLI11_PARSE(app, argc, argv);
  const auto fail = [](const absl::Status& status) {
    std::fprintf(stderr, "fourierkv-loadtest: %s\n", std::string(status.message()).c_str());
    return kExitNotRun;
  };
  if (const absl::Status s = FinishLoadFlags(app, flags); !s.ok()) return fail(s);
  std::string command_line = "fourierkv-loadtest";
  for (int i = 1; i < argc; ++i) absl::StrAppend(&command_line, " ", argv[i]);
  signal(SIGPIPE, SIG_IGN);
  StopOnSignals();
  const absl::StatusOr<int> status = Run(flags, command_line);
  return status.ok() ? *status : fail(status.status());
}
