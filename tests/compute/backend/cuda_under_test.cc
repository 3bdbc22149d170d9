#include "absl/status/status.h"
#include "tests/compute/backend/backend_under_test.h"

namespace fourierkv {

std::unique_ptr<ComputeBackend> CreateBackendUnderTest(int threads) {
  auto backend = CreateBackend("cuda", threads);
  if (backend.ok()) return *std::move(backend);
  if (!absl::IsUnavailable(backend.status())) ADD_FAILURE() << backend.status();
  return nullptr;
}

void ForEachTarget(const std::function<void()>& body) { body(); }

// Queries and what segments decode to are rounded to 11 bits, or to the cache's type in chunks.
AttentionTolerances TolerancesUnderTest() { return {4e-3, 3e-2, 4e-3, 4, false}; }

}  // namespace fourierkv
