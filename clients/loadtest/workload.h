// What each operation of a run is, as a pure function of the seed and the operation's number.

#pragma once

#include <cstdint>

#include "clients/loadtest/zipf.h"

namespace fourierkv::loadtest {

enum class OpKind : uint8_t { kPut, kGet, kMatch };
inline constexpr OpKind kOpKinds[] = {OpKind::kPut, OpKind::kGet, OpKind::kMatch};

const char* OpName(OpKind kind);  // "put"

// Relative weights, >= 0 and not all 0.
struct Mix {
  double put = 1;
  double get = 4;
  double match = 4;

  bool operator==(const Mix&) const = default;
};

struct PlannedOp {
  OpKind kind = OpKind::kPut;
  uint32_t slot = 0;   // of the population
  bool fresh = false;  // puts only: a sequence that was never put before
};

struct WorkloadOptions {
  Mix mix;
  uint32_t population = 1;
  double zipf = 0;
  double new_puts = 1;  // share of puts that are fresh
  uint64_t seed = 1;
};

// Immutable, thread safe.
class Workload {
 public:
  explicit Workload(const WorkloadOptions& options);

  PlannedOp Plan(uint64_t number) const;

  // The slot that is asked for `rank`-th most often. Neighbours in rank are no neighbours in slots.
  uint32_t SlotOfRank(uint32_t rank) const;

 private:
  const WorkloadOptions options_;
  const ZipfSampler zipf_;
  const uint32_t stride_;  // coprime to the population
};

}  // namespace fourierkv::loadtest
