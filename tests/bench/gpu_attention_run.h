// One row of the attention benchmark: random caches of a case's size, timed and checked.

#pragma once

#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "compute/backend/cuda/device_buffer.h"
#include "compute/base/thread_pool.h"
#include "compute/codec/segment_layout.h"
#include "kernels/attention_plan.h"
#include "tests/bench/gpu_attention_cases.h"
#include "tests/bench/gpu_cache_pool.h"
#include "tests/bench/gpu_timing.h"

namespace fourierkv {

struct AttentionResult {
  LaunchTiming timing;
  int sets = 0;       // of distinct inputs that launches go through in turn
  int64_t bytes = 0;  // of payloads and pages that a launch must read; queries, outputs and tables
                      // are not counted
  // ||out - reference|| / ||reference|| over both checked heads of the first and the last sequence,
  // against float64 on the decoded payloads: with float queries and outputs, and as timed, where
  // outputs are rounded to bf16. Not measured when profiling.
  std::optional<double> error;
  std::optional<double> rounded_error;
};

// Runs cases of one GPU. Keeps the last profile's plan and pool: run cases profile by profile.
class AttentionRunner {
 public:
  explicit AttentionRunner(uint64_t seed) : seed_(seed) {}

  // `repeat` = 1: a single launch, neither warmed up nor checked, for a profiler to look at.
  // ResourceExhausted if the caches do not fit into the device's memory; otherwise what plan or
  // launcher refuse, or Internal if results are not finite.
  absl::StatusOr<AttentionResult> Run(const AttentionCase& c, int repeat);

 private:
  struct Inputs;  // a case's caches and tables on the device

  absl::Status UseProfile(const AttentionCase& c);
  absl::StatusOr<std::unique_ptr<Inputs>> MakeInputs(const AttentionCase& c, int sets);
  absl::StatusOr<double> Check(const AttentionCase& c, const Inputs& inputs, bool float_io);

  const uint64_t seed_;
  ThreadPool threads_;
  CachePool pages_;  // made when first needed
  std::string profile_;
  std::unique_ptr<const ProfileLayout> layout_;
  CachePool segments_;  // of the profile
  DeviceBuffer plan_memory_;
  kernels::AttentionPlanView plan_ = {};
};

}  // namespace fourierkv
