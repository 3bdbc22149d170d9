// The backend that a test program is about. The same tests are linked into one program a backend,
// with the file that defines what stands here: cpu_under_test.cc, cuda_under_test.cc.

#pragma once

#include <functional>
#include <memory>

#include "compute/backend/compute_backend.h"
#include "gtest/gtest.h"

namespace fourierkv {

// Null if this machine cannot run it.
std::unique_ptr<ComputeBackend> CreateBackendUnderTest(int threads);

// Runs `body` with every instruction set of this machine that the backend has code for; once if it
// has no choice.
void ForEachTarget(const std::function<void()>& body);

// How far attention may be from float64, relative to the norm of the outputs, on the caches of
// backend_test_util.h, some of whose channels are twenty times as large as the others.
struct AttentionTolerances {
  double one_query;
  double chunk_bf16;  // several query tokens
  double chunk_fp16;
  double lse;         // of the log-sum-exp, as a multiple of the outputs'
  bool large_logits;  // whether weights mean anything when scores are in the tens of thousands

  double For(KvDtype dtype, int query_tokens) const {
    if (query_tokens == 1) return one_query;
    return dtype == KvDtype::kBf16 ? chunk_bf16 : chunk_fp16;
  }
};
AttentionTolerances TolerancesUnderTest();

// A fixture with the backend, or tests that are skipped loudly.
class BackendTest : public testing::Test {
 protected:
  void SetUp() override {
    if (backend_ == nullptr) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: the backend was not tested";
    }
  }

  const std::unique_ptr<ComputeBackend> backend_ = CreateBackendUnderTest(2);
};

}  // namespace fourierkv
