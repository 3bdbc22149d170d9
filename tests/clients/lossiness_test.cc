// Workers that keep a bound on errors: what compresses too badly is stored, fetched and attended to
// exactly.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/decode_worker/decode_engine.h"
#include "clients/prefill_worker/prefill_engine.h"
#include "tests/clients/worker_fixture.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

constexpr int kWindow = 64;
constexpr int kPrompt = 8 * 128 + 60;
constexpr auto kCompactMode = v1::CACHE_MODE_COMPACT;

class WorkerLossinessTest : public testing::Test {
 protected:
  WorkerLossinessTest() {
    WorkerOptions options;
    options.server = service_.address();
    options.model_dir = model_.folder();
    options.threads = 2;
    options.recent_window = kWindow;
    auto runtime = WorkerRuntime::Create(options);
    if (!runtime.ok()) {
      ADD_FAILURE() << runtime.status();
      std::abort();
    }
    runtime_ = *std::move(runtime);
  }

  v1::PrefillResult MustPrefill(const std::vector<int32_t>& prompt, float bound,
                                v1::SegmentForm exact_form = v1::SEGMENT_FORM_EXACT) {
    PrefillTask task;
    task.tokens = prompt;
    task.recent_window = kWindow;
    task.max_relative_error = bound;
    task.exact_form = exact_form;
    task.deadline = Soon();
    auto result = RunPrefill(*runtime_, task);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : v1::PrefillResult();
  }

  struct Generated {
    v1::GenerateResult result;
    LocalRun run;
  };
  Generated MustGenerate(const std::vector<int32_t>& prompt, float bound, int new_tokens = 30) {
    Generated generated;
    GenerateTask task;
    task.tokens = prompt;
    task.prefilled_tokens = static_cast<int64_t>(prompt.size());
    task.max_new_tokens = new_tokens;
    task.recent_window = kWindow;
    task.max_relative_error = bound;
    task.deadline = Soon();
    task.on_token = [&](const SampledToken& token) {
      generated.run.tokens.push_back(token.token);
      generated.run.log_probabilities.push_back(token.log_probability);
      return true;
    };
    auto result = RunDecode(*runtime_, task);
    EXPECT_TRUE(result.ok()) << result.status();
    if (result.ok()) generated.result = *result;
    return generated;
  }
  static void ExpectSame(const LocalRun& run, const LocalRun& local) {
    EXPECT_EQ(run.tokens, local.tokens);
    ASSERT_EQ(run.log_probabilities.size(), local.log_probabilities.size());
    for (size_t i = 0; i < local.log_probabilities.size(); ++i) {
      EXPECT_NEAR(run.log_probabilities[i], local.log_probabilities[i], 1e-3) << i;
    }
  }

  // An error that some compact segments of a prompt exceed and others do not.
  float MiddleError() {
    const auto prompt = RandomPrompt(99, kPrompt);
    MustPrefill(prompt, kNoErrorBound);
    std::vector<float> errors;
    for (const SegmentSummary& row : service_.core().store.List()) {
      const FormSummary& compact = row.forms[SegmentForm::kCompact];
      if (compact.bytes > 0) errors.push_back(compact.max_relative_error);
    }
    std::sort(errors.begin(), errors.end());
    return errors[errors.size() / 2];
  }

  TinyModel model_;
  const TempFolder folder_;
  TestService service_{ServiceLimits(), absl::StrCat("unix:", folder_.path(), "/kv")};
  std::unique_ptr<WorkerRuntime> runtime_;
};

TEST_F(WorkerLossinessTest, ABoundThatNothingKeepsMakesEverythingExact) {
  const float bound = 1e-6f;
  for (const auto form : {v1::SEGMENT_FORM_EXACT, v1::SEGMENT_FORM_LOSSLESS}) {
    SCOPED_TRACE(v1::SegmentForm_Name(form));
    service_.Restart();
    const auto prompt = ClearPrompt(*runtime_, v1::CACHE_MODE_EXACT, kPrompt, 30, kWindow);
    const v1::PrefillResult prefill = MustPrefill(prompt, bound, form);
    EXPECT_EQ(prefill.bounded_segments(), 6) << "segments that are not kept exactly anyway";
    EXPECT_EQ(prefill.lossless_bytes() > 0, form == v1::SEGMENT_FORM_LOSSLESS);
    EXPECT_EQ(prefill.exact_bytes() > 0, form == v1::SEGMENT_FORM_EXACT);
    const Generated generated = MustGenerate(prompt, bound);
    EXPECT_EQ(generated.result.reused_tokens(), prompt.size() - 1);
    EXPECT_EQ(generated.result.cache_compact_bytes(), 0);
    EXPECT_EQ(generated.result.cache_exact_bytes(),
              generated.result.cache_dense_equivalent_bytes());
    EXPECT_EQ(generated.result.bounded_segments(), 7);
    // What a dense cache gives, although the cache is a compact one.
    ExpectSame(generated.run,
               GenerateLocally(*runtime_, v1::CACHE_MODE_EXACT, prompt, 30, kWindow));
  }
}

TEST_F(WorkerLossinessTest, SegmentsBeyondTheBoundAreExactAmongCompactOnes) {
  const float bound = MiddleError();
  const auto prompt = ClearPrompt(*runtime_, kCompactMode, kPrompt, 30, kWindow, bound);
  const v1::PrefillResult prefill = MustPrefill(prompt, bound);
  const Generated generated = MustGenerate(prompt, bound);
  EXPECT_EQ(generated.result.reused_tokens(), prompt.size() - 1);
  EXPECT_GT(generated.result.cache_compact_bytes(), 0);
  EXPECT_GT(prefill.bounded_segments() + generated.result.bounded_segments(), 0);
  ExpectSame(generated.run, GenerateLocally(*runtime_, kCompactMode, prompt, 30, kWindow, bound));
}

TEST_F(WorkerLossinessTest, WhatTheServiceHoldsOnlyBeyondTheBoundIsComputed) {
  const float bound = 1e-6f;
  const auto prompt = ClearPrompt(*runtime_, v1::CACHE_MODE_EXACT, kPrompt, 20, kWindow);
  MustPrefill(prompt, kNoErrorBound);
  const Generated generated = MustGenerate(prompt, bound, 20);
  EXPECT_EQ(generated.result.reused_tokens(), 128) << "the sink is exact, what follows is not";
  ExpectSame(generated.run, GenerateLocally(*runtime_, v1::CACHE_MODE_EXACT, prompt, 20, kWindow));
}

TEST_F(WorkerLossinessTest, APrefillWithABoundReplacesWhatIsBeyondIt) {
  const auto prompt = RandomPrompt(7, kPrompt);
  MustPrefill(prompt, kNoErrorBound);
  EXPECT_EQ(MustPrefill(prompt, kNoErrorBound).payload_bytes_sent(), 0);
  EXPECT_GT(MustPrefill(prompt, 1e-6f).payload_bytes_sent(), 0);
  EXPECT_EQ(MustPrefill(prompt, 1e-6f).payload_bytes_sent(), 0);
  EXPECT_EQ(MustGenerate(prompt, 1e-6f, 2).result.reused_tokens(), kPrompt - 1);
}

TEST_F(WorkerLossinessTest, LosslessSegmentsServeEveryCacheMode) {
  const auto prompt = ClearPrompt(*runtime_, kCompactMode, kPrompt, 20, kWindow);
  const v1::PrefillResult prefill = MustPrefill(prompt, kNoErrorBound, v1::SEGMENT_FORM_LOSSLESS);
  EXPECT_GT(prefill.lossless_bytes(), 0);
  EXPECT_EQ(prefill.exact_bytes(), 0);
  EXPECT_EQ(MustPrefill(prompt, kNoErrorBound).payload_bytes_sent(), 0) << "as good as exact";
  const Generated generated = MustGenerate(prompt, kNoErrorBound, 20);
  EXPECT_EQ(generated.result.reused_tokens(), prompt.size() - 1);
  ExpectSame(generated.run, GenerateLocally(*runtime_, kCompactMode, prompt, 20, kWindow));
}

}  // namespace
}  // namespace fourierkv
