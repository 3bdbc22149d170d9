// The engine that a test program is about. The same tests are linked into one program an engine,
// with the file that defines what stands here: host_under_test.cc, cuda_under_test.cc.

#pragma once

#include <memory>

#include "compute/backend/compute_backend.h"
#include "compute/model/engine_registry.h"

namespace fourierkv {

// The backend of the same device. Null if this machine does not have it.
std::unique_ptr<ComputeBackend> CreateEngineBackendUnderTest();

absl::StatusOr<std::unique_ptr<ModelEngine>> CreateEngineUnderTest(const EngineOptions& options);

struct EngineTolerances {
  const char* name;  // of the engine that this must be
  double log_prob;   // of a log probability, against the CPU's runner in float
  double kv;         // of K and V, relative to their norm
};
EngineTolerances EngineTolerancesUnderTest();

}  // namespace fourierkv
