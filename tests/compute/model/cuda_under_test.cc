#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "tests/compute/model/engine_under_test.h"

namespace fourierkv {

std::unique_ptr<ComputeBackend> CreateEngineBackendUnderTest() {
  auto backend = CreateBackend("cuda", 2);
  if (backend.ok()) return *std::move(backend);
  if (!absl::IsUnavailable(backend.status())) ADD_FAILURE() << backend.status();
  return nullptr;
}

absl::StatusOr<std::unique_ptr<ModelEngine>> CreateEngineUnderTest(const EngineOptions& options) {
  return CreateEngine("cuda", options);
}

// Activations and weights of the softmax are bf16; logits spread over about 20.
EngineTolerances EngineTolerancesUnderTest() { return {"cuda", 0.5, 0.03}; }

}  // namespace fourierkv
