// Whole load tests on services in this process.

#include "clients/loadtest/load_run.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/loadtest/target.h"
#include "tests/clients/loadtest/faulty_service.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv::loadtest {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr int64_t kMillisecond = 1'000'000;

// Small, quick, everything exact.
LoadOptions SmallLoad(const std::string& address) {
  LoadOptions options;
  options.server = address;
  options.geometry = {.layers = 2, .kv_heads = 2, .head_dim = 16};
  options.fetch = SegmentForm::kExact;
  options.segment_tokens = 128;
  options.value_tokens = 300;
  options.population = 8;
  options.rate = 200;
  options.warmup_seconds = 0;
  options.duration_seconds = 0.3;
  options.concurrency = 64;
  options.connections = 2;
  options.verify = true;
  options.new_puts = 0.5;
  return options;
}

LoadOptions SmallCompressedLoad(const std::string& address) {
  LoadOptions options = SmallLoad(address);
  options.profile = UniformProfile(options.geometry, 0.5, 0.5, 8, 4);
  options.profile->name = "load-run-test";
  options.profile->segment_tokens = options.segment_tokens;
  options.fetch = SegmentForm::kCompact;
  options.value_tokens = 3 * options.segment_tokens;
  return options;
}

LoadOptions MatchesOnly(const std::string& address) {
  LoadOptions options = SmallLoad(address);
  options.mix = {.put = 0, .get = 0, .match = 1};
  options.fill = false;
  options.verify = false;
  return options;
}

class LoadRunTest : public testing::Test {
 protected:
  LoadReport Run(const LoadOptions& options) {
    EXPECT_EQ(CheckLoadOptions(options), absl::OkStatus());
    auto target = Target::Connect(options);
    EXPECT_TRUE(target.ok()) << target.status();
    if (!target.ok()) return {};
    LoadRun run(options, target->get(), &stop_,
                [this](const std::string& line) { said_.push_back(line); });
    fill_ = options.fill ? run.Fill() : absl::OkStatus();
    return run.Measure();
  }

  static const KindTotals& Totals(const LoadReport& report, OpKind kind) {
    return report.totals.kinds[static_cast<size_t>(kind)];
  }

  std::atomic<bool> stop_{false};
  absl::Status fill_;
  std::vector<std::string> said_;
};

void ExpectAllWell(const LoadReport& report) {
  EXPECT_EQ(report.failed(), 0);
  EXPECT_EQ(report.totals.wrong, 0);
  EXPECT_EQ(report.exit_code(), kExitOk) << FormatReport(report);
  EXPECT_EQ(report.sent() + report.unsent, report.sum_offered());
  for (const KindTotals& kind : report.totals.kinds) {
    EXPECT_EQ(kind.succeeded, kind.sent);
    EXPECT_EQ(kind.latency.count(), kind.sent);
  }
}

TEST_F(LoadRunTest, EveryFormComesBackAsItWasPut) {
  struct Case {
    SegmentForm payload;
    SegmentForm fetch;
  };
  using enum SegmentForm;
  for (const Case& c : {Case{kExact, kExact}, Case{kExact, kLossless}, Case{kExact, kCompact},
                        Case{kExact, kDense}, Case{kLossless, kExact}, Case{kLossless, kCompact},
                        Case{kCompact, kCompact}, Case{kCompact, kDense}}) {
    SCOPED_TRACE(absl::StrCat(FormName(c.payload), " ", FormName(c.fetch)));
    TestService service;
    LoadOptions options = SmallCompressedLoad(service.address());
    options.payload = c.payload;
    options.fetch = c.fetch;
    options.rate = 300;
    options.duration_seconds = 0.2;
    const LoadReport report = Run(options);
    EXPECT_EQ(fill_, absl::OkStatus());
    ExpectAllWell(report);
    EXPECT_EQ(report.sum_offered(), 60);
    const OperationResult& gets = Totals(report, OpKind::kGet).sum;
    EXPECT_GT(gets.verified_bytes, 0);
    EXPECT_GT(gets.asked_tokens, 0);
    EXPECT_EQ(gets.hit_tokens, gets.asked_tokens);
    EXPECT_GT(Totals(report, OpKind::kPut).sum.stored_segments, 0);
  }
}

TEST_F(LoadRunTest, WithoutProfileAndWithTailsEverythingIsExact) {
  TestService service;
  const LoadReport report = Run(SmallLoad(service.address()));
  ExpectAllWell(report);
  EXPECT_EQ(Totals(report, OpKind::kMatch).sum.hit_tokens,
            300 * Totals(report, OpKind::kMatch).succeeded);
  EXPECT_EQ(report.filled_segments, 8 * 3);
}

TEST_F(LoadRunTest, MatchesByKeyFindTheFullSegments) {
  TestService service;
  LoadOptions options = SmallLoad(service.address());
  options.match_by_keys = true;
  const LoadReport report = Run(options);
  ExpectAllWell(report);
  const OperationResult& sum = Totals(report, OpKind::kMatch).sum;
  EXPECT_EQ(sum.hit_tokens, sum.asked_tokens);
  EXPECT_EQ(sum.hit_tokens, 256 * Totals(report, OpKind::kMatch).succeeded);
}

TEST_F(LoadRunTest, WithoutFillingGetsFindWhatPutsHaveStored) {
  TestService service;
  LoadOptions options = SmallLoad(service.address());
  options.fill = false;
  const LoadReport report = Run(options);
  ExpectAllWell(report);
  const OperationResult& gets = Totals(report, OpKind::kGet).sum;
  EXPECT_EQ(gets.asked_tokens, 300 * Totals(report, OpKind::kGet).succeeded);
  EXPECT_LE(gets.hit_tokens, gets.asked_tokens);
}

TEST_F(LoadRunTest, SharedPrefixesAreStoredOnce) {
  TestService service;
  LoadOptions options = SmallLoad(service.address());
  options.value_tokens = 512;
  options.prefix_share = 0.75;
  options.prefix_groups = 2;
  const LoadReport report = Run(options);
  ExpectAllWell(report);
  EXPECT_EQ(report.filled_segments, 2 * 3 + 8);
}

TEST_F(LoadRunTest, AFlippedBitIsFound_WhateverItsChecksumSays) {
  TestService real;
  for (const bool reseal : {false, true}) {
    SCOPED_TRACE(reseal);
    FaultyService service(real.address());
    service.on_get = [reseal](v1::GetSegmentsResponse& response) {
      if (!response.has_batch()) return;
      v1::BlobPiece& piece = *response.mutable_batch()->mutable_pieces(0);
      std::string blob = piece.data();
      AlignedBuffer aligned(blob.size());
      std::memcpy(aligned.data(), blob.data(), blob.size());
      const auto header = OpenBlob(aligned.span());
      blob.back() ^= 1;
      if (reseal && header.ok()) SealBlob(*header, std::as_writable_bytes(std::span(blob)));
      piece.set_data(blob);
    };
    LoadOptions options = SmallLoad(service.address());
    options.mix = {.put = 0, .get = 1, .match = 0};
    const LoadReport report = Run(options);
    EXPECT_EQ(report.totals.wrong, report.sent());
    EXPECT_EQ(report.exit_code(), kExitWrongBytes);
    ASSERT_FALSE(report.totals.wrong_messages.empty());
    EXPECT_THAT(report.totals.wrong_messages[0],
                HasSubstr(reseal ? "values are not those that were put" : "layer"));
    EXPECT_THAT(FormatReport(report), HasSubstr("WRONG"));
    EXPECT_EQ(Totals(report, OpKind::kGet).errors.at(absl::StatusCode::kDataLoss).count,
              report.sent());
  }
}

// All calls wait while one stalls, as when a lock is held: in an open loop everything that was due
// in those 200 ms is late, by the rest of them.
TEST_F(LoadRunTest, AStallShowsInTheTailOfAnOpenLoop) {
  FaultyService service;
  std::mutex mutex;
  int calls = 0;
  service.on_match = [&](grpc::ServerContext&) {
    std::lock_guard lock(mutex);
    if (++calls == 50) absl::SleepFor(absl::Milliseconds(200));
    return grpc::Status::OK;
  };
  LoadOptions options = MatchesOnly(service.address());
  options.rate = 500;
  options.duration_seconds = 1;
  options.concurrency = 1;  // even so: what is due waits, and the wait is counted
  const LoadReport report = Run(options);
  const LatencyHistogram& open = Totals(report, OpKind::kMatch).latency;
  uint64_t late = 0;
  open.ForEach([&](int64_t lowest, int64_t, uint64_t count) {
    if (lowest >= 100 * kMillisecond) late += count;
  });
  EXPECT_GE(late, 48) << "100 ms of arrivals at 500/s";
  EXPECT_GE(open.Quantile(0.96), 95 * kMillisecond);
  EXPECT_GE(open.max(), 199 * kMillisecond);
  EXPECT_GT(report.totals.waited, 0);
  EXPECT_THAT(FormatReport(report), HasSubstr("waited for one of 1 slots"));
}

TEST_F(LoadRunTest, TheSameStallIsOneOperationOfAClosedLoop_WhichSaysSo) {
  FaultyService service;
  std::mutex mutex;
  int calls = 0;
  int slow = 0;
  service.on_match = [&](grpc::ServerContext&) {
    std::lock_guard lock(mutex);
    if (++calls == 50) {
      absl::SleepFor(absl::Milliseconds(200));
      ++slow;
    }
    return grpc::Status::OK;
  };
  LoadOptions options = MatchesOnly(service.address());
  options.closed_loop = true;
  options.concurrency = 1;
  const LoadReport report = Run(options);
  EXPECT_EQ(slow, 1);
  EXPECT_GE(Totals(report, OpKind::kMatch).latency.max(), 199 * kMillisecond);
  EXPECT_THAT(FormatReport(report), HasSubstr("CLOSED LOOP"));
  EXPECT_THAT(ReportJson(report), HasSubstr("\"kind\": \"closed\""));
}

TEST_F(LoadRunTest, NeverAreMoreInFlightThanAsked) {
  for (const bool closed : {false, true}) {
    SCOPED_TRACE(closed);
    FaultyService service;
    service.on_match = [](grpc::ServerContext&) {
      absl::SleepFor(absl::Milliseconds(5));
      return grpc::Status::OK;
    };
    LoadOptions options = MatchesOnly(service.address());
    options.rate = 5000;
    options.closed_loop = closed;
    options.concurrency = 3;
    options.senders = 2;
    const LoadReport report = Run(options);
    EXPECT_EQ(service.most_at_once(), 3);
    EXPECT_EQ(report.failed(), 0);
    EXPECT_EQ(report.unsent > 0, !closed);
    EXPECT_EQ(report.sent() + report.unsent, report.sum_offered());
  }
}

TEST_F(LoadRunTest, OperationsThatRunIntoTheirDeadlineCountAsThatLate) {
  FaultyService service;
  service.on_match = [](grpc::ServerContext& context) {
    while (!context.IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    return grpc::Status::CANCELLED;
  };
  LoadOptions options = MatchesOnly(service.address());
  options.rate = 50;
  options.deadline_seconds = 0.1;
  const LoadReport report = Run(options);
  const KindTotals& totals = Totals(report, OpKind::kMatch);
  EXPECT_EQ(report.sent(), 15);
  ASSERT_EQ(totals.errors.count(absl::StatusCode::kDeadlineExceeded), 1);
  EXPECT_EQ(totals.errors.at(absl::StatusCode::kDeadlineExceeded).count, 15);
  EXPECT_EQ(totals.latency.count(), 15);
  EXPECT_GE(totals.latency.min(), 95 * kMillisecond);
  EXPECT_EQ(report.exit_code(), kExitErrors);
}

TEST_F(LoadRunTest, ToleratedErrorsAreCountedAndForgiven) {
  FaultyService service;
  std::atomic<int> calls{0};
  service.on_match = [&](grpc::ServerContext&) {
    return ++calls % 2 == 0 ? grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full")
                            : grpc::Status::OK;
  };
  LoadOptions options = MatchesOnly(service.address());
  LoadReport report = Run(options);
  EXPECT_EQ(report.failed(), 30);
  EXPECT_EQ(report.exit_code(), kExitErrors);
  EXPECT_THAT(FormatReport(report), HasSubstr("RESOURCE_EXHAUSTED, first: full"));
  EXPECT_EQ(Totals(report, OpKind::kMatch).latency.count(), 30) << "refusals would flatter";
  report.options.tolerated = {absl::StatusCode::kResourceExhausted};
  EXPECT_EQ(report.exit_code(), kExitOk);
}

TEST_F(LoadRunTest, AStopEndsTheRunWithWhatItHas) {
  FaultyService service;
  std::atomic<int> calls{0};
  service.on_match = [&](grpc::ServerContext& context) {
    const int call = ++calls;
    if (call == 20) stop_ = true;
    while (call > 10 && !context.IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    return grpc::Status::OK;
  };
  LoadOptions options = MatchesOnly(service.address());
  options.duration_seconds = 600;
  options.deadline_seconds = 600;
  const LoadReport report = Run(options);
  EXPECT_TRUE(report.interrupted);
  EXPECT_LT(report.seconds, 300);
  EXPECT_EQ(Totals(report, OpKind::kMatch).succeeded, 10);
  EXPECT_GE(Totals(report, OpKind::kMatch).abandoned, 10);
  EXPECT_EQ(report.failed(), 0) << "what was cancelled is no error of the service";
  EXPECT_EQ(report.exit_code(), kExitOk);
  EXPECT_THAT(FormatReport(report), HasSubstr("INTERRUPTED"));
}

TEST_F(LoadRunTest, FillingEndsWithItsFirstFailure) {
  FaultyService service;
  Run(SmallLoad(service.address()));
  EXPECT_EQ(fill_.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(fill_.message()), HasSubstr("no puts here"));
}

TEST_F(LoadRunTest, AServerThatGoesAwayGivesErrorsByCode) {
  auto service = std::make_unique<TestService>();
  LoadOptions options = SmallLoad(service->address());
  options.duration_seconds = 1;
  options.warmup_seconds = 0;
  std::thread end([&] {
    absl::SleepFor(absl::Milliseconds(400));
    service->Stop();
  });
  const LoadReport report = Run(options);
  end.join();
  EXPECT_EQ(report.exit_code(), kExitErrors);
  EXPECT_GT(report.failed(), 0);
  uint64_t unavailable = 0;
  for (const KindTotals& kind : report.totals.kinds) {
    const auto it = kind.errors.find(absl::StatusCode::kUnavailable);
    if (it != kind.errors.end()) unavailable += it->second.count;
  }
  EXPECT_GT(unavailable, 0);
  EXPECT_EQ(report.totals.wrong, 0);
}

TEST_F(LoadRunTest, TheReportAddsUp) {
  TestService service;
  LoadOptions options = SmallCompressedLoad(service.address());
  options.duration_seconds = 1.2;
  const LoadReport report = Run(options);
  EXPECT_FALSE(said_.empty());
  EXPECT_THAT(said_.back(), HasSubstr("p99"));
  const auto json = nlohmann::json::parse(ReportJson(report));
  EXPECT_EQ(json["schema"], "fourierkv-loadtest/1");
  EXPECT_EQ(json["loop"]["kind"], "open");
  EXPECT_EQ(json["server"]["version"], FOURIERKV_VERSION);
  uint64_t sent = 0;
  for (const char* name : {"put", "get", "match"}) {
    SCOPED_TRACE(name);
    const auto& op = json["operations"][name];
    sent += op["sent"].get<uint64_t>();
    EXPECT_EQ(op["sent"].get<uint64_t>() - op["failed"].get<uint64_t>(), op["succeeded"]);
    uint64_t sum = 0;
    for (const auto& bucket : op["histogram_ns"]) {
      EXPECT_LE(bucket[0], bucket[1]);
      sum += bucket[2].get<uint64_t>();
    }
    EXPECT_EQ(sum, op["latency_ms"]["count"]);
    EXPECT_LE(op["latency_ms"]["p50"], op["latency_ms"]["p99"]);
    EXPECT_LE(op["latency_ms"]["p99"], op["latency_ms"]["max"]);
  }
  EXPECT_EQ(sent + json["generator"]["unsent"].get<uint64_t>(), 240);
  // Compact payloads are smaller on the wire than what they stand for, exact ones are not.
  EXPECT_LT(json["wire_bytes"]["received"], json["dense_equivalent_bytes"]["received"]);
  EXPECT_GE(json["wire_bytes"]["sent"], json["dense_equivalent_bytes"]["sent"]);
  EXPECT_THAT(FormatReport(report), Not(HasSubstr("error")));
}

}  // namespace
}  // namespace fourierkv::loadtest
