#include "compute/backend/cpu/kernels.h"
#include "tests/compute/backend/backend_under_test.h"

namespace fourierkv {

std::unique_ptr<ComputeBackend> CreateBackendUnderTest(int threads) {
  return CreateCpuBackend(threads);
}

void ForEachTarget(const std::function<void()>& body) {
  for (int64_t target : cpu::RunnableTargets()) {
    cpu::ForceTarget(target);
    SCOPED_TRACE(cpu::TargetName());
    body();
  }
  cpu::ForceTarget(0);
}

AttentionTolerances TolerancesUnderTest() { return {1e-5, 1e-5, 1e-5, 1, true}; }

}  // namespace fourierkv
