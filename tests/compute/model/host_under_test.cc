#include "tests/compute/model/engine_under_test.h"

namespace fourierkv {

std::unique_ptr<ComputeBackend> CreateEngineBackendUnderTest() { return CreateCpuBackend(2); }

absl::StatusOr<std::unique_ptr<ModelEngine>> CreateEngineUnderTest(const EngineOptions& options) {
  return CreateEngine("cpu", options);
}

// The same arithmetic.
EngineTolerances EngineTolerancesUnderTest() { return {"host", 1e-5, 1e-6}; }

}  // namespace fourierkv
