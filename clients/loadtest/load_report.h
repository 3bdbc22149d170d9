// What a load test found.

#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "clients/loadtest/load_options.h"
#include "clients/loadtest/recorder.h"
#include "clients/loadtest/target.h"

namespace fourierkv::loadtest {

// Exit statuses of the program, in rising severity but for 2: it could not run.
inline constexpr int kExitOk = 0;
inline constexpr int kExitErrors = 1;
inline constexpr int kExitNotRun = 2;
inline constexpr int kExitWrongBytes = 3;

struct LoadReport {
  LoadOptions options;
  std::string command_line;
  std::optional<ServerInfo> server;
  bool interrupted = false;

  double fill_seconds = 0;
  uint64_t filled_segments = 0;

  // The measured window.
  double seconds = 0;
  std::array<uint64_t, kKinds> offered{};    // due in the window; in a closed loop those sent
  std::array<uint64_t, kKinds> completed{};  // succeeded within the window, whenever sent
  uint64_t unsent = 0;                       // due in the window and not sent by its end
  uint64_t bytes_sent = 0;                   // of messages, within the window
  uint64_t bytes_received = 0;
  uint64_t dense_sent = 0;  // of operations that succeeded within the window
  uint64_t dense_received = 0;
  double cpu_seconds = 0;  // of the generator, user and system

  RunTotals totals;

  uint64_t sent() const;
  uint64_t failed() const;  // in the window
  // Failures outside of the window too, those with tolerated codes not.
  uint64_t untolerated() const;
  uint64_t sum_offered() const;
  uint64_t sum_completed() const;
  // The generator did not send what it was asked to, or not when: latencies are then in part its
  // own. Empty, or sentences that say what to do.
  std::string generator_fault() const;
  int exit_code() const;
};

// For people, and as JSON in the form that docs/loadtest.md describes.
std::string FormatReport(const LoadReport& report);
std::string ReportJson(const LoadReport& report);

}  // namespace fourierkv::loadtest
