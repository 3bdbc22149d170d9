// What a load test is asked to do.

#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "clients/cpp/channel.h"
#include "clients/loadtest/arrivals.h"
#include "clients/loadtest/workload.h"
#include "compute/base/geometry.h"
#include "compute/codec/profile.h"
#include "compute/codec/segment_blob.h"

namespace fourierkv::loadtest {

struct LoadOptions {
  std::string server;
  int connections = 4;
  ChannelOptions channel;
  double connect_seconds = 10;

  // Open loop, unless closed_loop.
  double rate = 100;  // operations a second
  ArrivalProcess arrival = ArrivalProcess::kConstant;
  bool closed_loop = false;
  int concurrency = 256;  // most operations in flight; all of them, always, in a closed loop
  int senders = 1;        // threads
  double duration_seconds = 10;
  double warmup_seconds = 1;
  double deadline_seconds = 10;  // of an operation

  Mix mix;
  uint32_t population = 100;  // sequences
  int64_t value_tokens = 2048;
  double zipf = 0.99;
  double prefix_share = 0;
  uint32_t prefix_groups = 1;
  double new_puts = 1;
  bool fill = true;
  bool match_by_keys = false;
  bool verify = false;
  uint64_t seed = 1;

  KvGeometry geometry{.layers = 8, .kv_heads = 2, .head_dim = 64};
  std::optional<CodecProfile> profile;
  int segment_tokens = 256;
  SegmentForm payload = SegmentForm::kExact;
  SegmentForm fetch = SegmentForm::kCompact;

  // Codes that do not make the run fail.
  std::set<absl::StatusCode> tolerated;

  int64_t segments() const { return (value_tokens + segment_tokens - 1) / segment_tokens; }
};

// InvalidArgument naming the flags that make no sense together, or ask for more than is bounded.
absl::Status CheckLoadOptions(const LoadOptions& options);

// "1:4:4" as put:get:match.
absl::StatusOr<Mix> ParseMix(absl::string_view text);

// The code of a name as in "UNAVAILABLE". InvalidArgument for another text.
absl::StatusOr<absl::StatusCode> ParseStatusCode(absl::string_view name);

}  // namespace fourierkv::loadtest
