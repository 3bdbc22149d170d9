// Prefill and decode workers against a real service: the same tokens as without one, less work, and
// nothing lost when the service loses something.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/decode_worker/decode_engine.h"
#include "clients/prefill_worker/prefill_engine.h"
#include "clients/worker/prefix_fetch.h"
#include "compute/cache/compact_kv_cache.h"
#include "compute/model/llama_runner.h"
#include "proto/support/convert.h"
#include "tests/clients/worker_fixture.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

constexpr int kWindow = 64;
// Eight segments and a tail, computed in three chunks. No segment is sealed at the end of the last
// chunk, so that its tokens attend to the same compact segments whether computed or fetched.
constexpr int kPrompt = 8 * 128 + 60;
constexpr auto kCompactMode = v1::CACHE_MODE_COMPACT;
constexpr auto kExactMode = v1::CACHE_MODE_EXACT;

class WorkerTest : public testing::Test {
 protected:
  explicit WorkerTest(int segment_tokens = 128) : model_(segment_tokens) {
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

  PrefillTask MakePrefill(const std::vector<int32_t>& prompt, v1::CacheMode mode) const {
    PrefillTask task;
    task.tokens = prompt;
    task.mode = mode;
    task.recent_window = kWindow;
    task.deadline = Soon();
    return task;
  }

  v1::PrefillResult MustPrefill(const std::vector<int32_t>& prompt, v1::CacheMode mode) {
    auto result = RunPrefill(*runtime_, MakePrefill(prompt, mode));
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *result : v1::PrefillResult();
  }

  struct Generated {
    v1::GenerateResult result;
    std::vector<int32_t> tokens;
    std::vector<double> log_probabilities;
  };

  GenerateTask MakeGenerate(const std::vector<int32_t>& prompt, v1::CacheMode mode, int new_tokens,
                            int64_t prefilled = 0) const {
    GenerateTask task;
    task.tokens = prompt;
    task.prefilled_tokens = prefilled;
    task.max_new_tokens = new_tokens;
    task.mode = mode;
    task.recent_window = kWindow;
    task.deadline = Soon();
    return task;
  }

  Generated MustGenerate(const std::vector<int32_t>& prompt, v1::CacheMode mode, int new_tokens,
                         int64_t prefilled = 0) {
    Generated generated;
    GenerateTask task = MakeGenerate(prompt, mode, new_tokens, prefilled);
    task.on_token = [&](const SampledToken& token) {
      generated.tokens.push_back(token.token);
      generated.log_probabilities.push_back(token.log_probability);
      return true;
    };
    auto result = RunDecode(*runtime_, task);
    EXPECT_TRUE(result.ok()) << result.status();
    if (result.ok()) generated.result = *result;
    return generated;
  }

  void ExpectSame(const Generated& generated, const LocalRun& local) {
    EXPECT_EQ(generated.tokens, local.tokens);
    ASSERT_EQ(generated.log_probabilities.size(), local.log_probabilities.size());
    for (size_t i = 0; i < local.log_probabilities.size(); ++i) {
      EXPECT_NEAR(generated.log_probabilities[i], local.log_probabilities[i], 1e-3) << i;
    }
  }

  uint64_t MatchedTokens(const std::vector<int32_t>& tokens, v1::CacheMode mode) {
    v1::MatchPrefixRequest request;
    *request.mutable_namespace_() = runtime_->ns(mode);
    request.mutable_token_ids()->Assign(tokens.begin(), tokens.end());
    return service_.client().MatchPrefix(request, Soon())->matched_tokens();
  }

  void WaitForSegments(uint64_t count) {
    for (const absl::Time deadline = Soon(); absl::Now() < deadline;) {
      if (service_.Stats().segments() >= count) return;
      absl::SleepFor(absl::Milliseconds(1));
    }
    ADD_FAILURE() << "no " << count << " segments";
  }

  // One bit of what the service holds of segment `index`, in whatever form.
  void DamageSegment(int64_t index) {
    for (const SegmentSummary& row : service_.core().store.List()) {
      if (row.index != index) continue;
      const auto stored = service_.core().store.Get({&row.key, 1});
      for (const SegmentForm form : kHeldForms) {
        if (const FormPtr& held = stored[0]->forms[form]; held != nullptr) {
          Damage(held->blob(1, Part::kK), 150);
        }
      }
    }
  }

  TinyModel model_;
  const TempFolder folder_;
  TestService service_{ServiceLimits(), absl::StrCat("unix:", folder_.path(), "/kv")};
  std::unique_ptr<WorkerRuntime> runtime_;
};

TEST_F(WorkerTest, ThroughTheServiceOrNotTheTokensAreTheSame) {
  for (const v1::CacheMode mode : {kCompactMode, kExactMode}) {
    SCOPED_TRACE(v1::CacheMode_Name(mode));
    const auto prompt = ClearPrompt(*runtime_, mode, kPrompt, 40, kWindow);
    const auto prefill = MustPrefill(prompt, mode);
    const int64_t tokens = static_cast<int64_t>(prompt.size());
    EXPECT_EQ(prefill.tokens(), tokens);
    EXPECT_EQ(prefill.reused_tokens(), 0);
    EXPECT_EQ(prefill.computed_tokens(), tokens);
    EXPECT_EQ(prefill.stored_segments(), 9);
    EXPECT_EQ(prefill.payload_bytes_sent(), TinyModel::geometry().DenseBytes(tokens));
    EXPECT_EQ(prefill.payload_bytes_fetched(), 0);
    EXPECT_EQ(prefill.compact_bytes() > 0, mode == kCompactMode);
    EXPECT_EQ(prefill.max_relative_error() > 0, mode == kCompactMode);
    EXPECT_EQ(prefill.namespace_().profile_id().empty(), mode == kExactMode);

    const auto generated = MustGenerate(prompt, mode, 40, /*prefilled=*/tokens);
    ExpectSame(generated, GenerateLocally(*runtime_, mode, prompt, 40, kWindow));
    EXPECT_EQ(generated.result.prompt_tokens(), tokens);
    EXPECT_EQ(generated.result.reused_tokens(), tokens - 1);
    EXPECT_EQ(generated.result.computed_tokens(), 1);
    EXPECT_EQ(generated.result.new_tokens(), 40);
    EXPECT_EQ(generated.result.finish_reason(), v1::FINISH_REASON_LENGTH);
    EXPECT_GT(generated.result.payload_bytes_fetched(), 0);
    const uint64_t dense = TinyModel::geometry().DenseBytes(tokens + 39);
    EXPECT_EQ(generated.result.cache_dense_equivalent_bytes(), dense);
    const uint64_t held =
        generated.result.cache_exact_bytes() + generated.result.cache_compact_bytes();
    if (mode == kCompactMode) {
      EXPECT_LT(held, dense);
      EXPECT_LT(generated.result.payload_bytes_fetched(), dense);
    } else {
      EXPECT_EQ(held, dense);
    }
  }
}

TEST_F(WorkerTest, ATailIsFoundOnlyByWhoKnowsOfIt) {
  const auto prompt = RandomPrompt(1, 560);
  MustPrefill({prompt.begin(), prompt.begin() + 500}, kCompactMode);
  EXPECT_EQ(MustGenerate(prompt, kCompactMode, 4).result.reused_tokens(), 3 * 128);
  EXPECT_EQ(MustGenerate(prompt, kCompactMode, 4, /*prefilled=*/500).result.reused_tokens(), 500);
  EXPECT_EQ(MustGenerate(prompt, kCompactMode, 4, /*prefilled=*/490).result.reused_tokens(),
            3 * 128)
      << "no such tail: what else matches is used";
}

TEST_F(WorkerTest, APrefillThatIsRepeatedSendsNothing) {
  for (const v1::CacheMode mode : {kCompactMode, kExactMode}) {
    const auto prompt = RandomPrompt(1, 700);
    MustPrefill(prompt, mode);
    const auto again = MustPrefill(prompt, mode);
    EXPECT_EQ(again.payload_bytes_sent(), 0);
    EXPECT_EQ(again.reused_tokens(), 700);
    EXPECT_EQ(again.computed_tokens(), 0);
    EXPECT_EQ(again.stored_segments(), 0);
    EXPECT_EQ(again.deduplicated_segments(), 6);
  }
  EXPECT_EQ(service_.Stats().leases(), 0) << "leases are given back";
}

TEST_F(WorkerTest, ASharedPrefixIsComputedOnce) {
  for (const v1::CacheMode mode : {kCompactMode, kExactMode}) {
    SCOPED_TRACE(v1::CacheMode_Name(mode));
    auto prompt = ClearPrompt(*runtime_, mode, 900, 20, kWindow);
    auto other = RandomPrompt(77, 900);
    std::copy_n(prompt.begin(), 700, other.begin());
    MustPrefill(other, mode);
    const auto result = MustPrefill(prompt, mode);
    EXPECT_EQ(result.reused_tokens(), 5 * 128);
    EXPECT_EQ(result.computed_tokens(), 900 - 5 * 128);
    EXPECT_EQ(result.payload_bytes_sent(), TinyModel::geometry().DenseBytes(900 - 5 * 128));
    EXPECT_GT(result.payload_bytes_fetched(), 0);
    const auto generated = MustGenerate(prompt, mode, 20, 900);
    EXPECT_EQ(generated.result.reused_tokens(), 899);
    // Reused compact segments are a little less exact than computed ones, dense ones are not.
    if (mode == kExactMode) {
      ExpectSame(generated, GenerateLocally(*runtime_, mode, prompt, 20, kWindow));
    }
  }
}

TEST_F(WorkerTest, AnInterruptedPrefillGoesOnWhereItStopped) {
  const auto prompt = ClearPrompt(*runtime_, kExactMode, 1100, 20, kWindow);
  PrefillTask task = MakePrefill(prompt, kExactMode);
  std::atomic<int64_t> done = 0;
  task.on_progress = [&](int64_t tokens, int64_t total) {
    done = tokens;
    EXPECT_EQ(total, 1100);
  };
  task.cancelled = [&] {
    if (done < 512) return false;
    WaitForSegments(4);  // the first chunk has been committed
    return true;
  };
  const auto interrupted = RunPrefill(*runtime_, task);
  EXPECT_EQ(interrupted.status().code(), StatusCode::kCancelled) << interrupted.status();
  service_.UsedBytes();  // the put it left open ends
  EXPECT_EQ(service_.Stats().segments(), 4);
  EXPECT_EQ(service_.Stats().leases(), 0);

  const auto resumed = MustPrefill(prompt, kExactMode);
  EXPECT_EQ(resumed.reused_tokens(), 512);
  EXPECT_EQ(resumed.computed_tokens(), 1100 - 512);
  EXPECT_EQ(resumed.stored_segments(), 5);
  ExpectSame(MustGenerate(prompt, kExactMode, 20, 1100),
             GenerateLocally(*runtime_, kExactMode, prompt, 20, kWindow));
}

TEST_F(WorkerTest, ADecoderComputesWhatTheServiceFindsDamaged) {
  for (const v1::CacheMode mode : {kCompactMode, kExactMode}) {
    SCOPED_TRACE(v1::CacheMode_Name(mode));
    const auto prompt = ClearPrompt(*runtime_, mode, kPrompt, 20, kWindow);
    MustPrefill(prompt, mode);
    DamageSegment(2);
    const auto generated = MustGenerate(prompt, mode, 20, kPrompt);
    ExpectSame(generated, GenerateLocally(*runtime_, mode, prompt, 20, kWindow));
    EXPECT_EQ(generated.result.reused_tokens(), 0);
    EXPECT_EQ(generated.result.computed_tokens(), kPrompt);
    EXPECT_EQ(generated.result.payload_bytes_fetched(), 0);
    // A compact decoder has encoded the segment itself, and has given it back to the service.
    EXPECT_EQ(MatchedTokens(prompt, mode), mode == kCompactMode ? kPrompt : 2 * 128);
  }
}

TEST_F(WorkerTest, APrefillRepairsWhatTheServiceFindsDamaged) {
  for (const v1::CacheMode mode : {kCompactMode, kExactMode}) {
    SCOPED_TRACE(v1::CacheMode_Name(mode));
    const auto prompt = ClearPrompt(*runtime_, mode, kPrompt, 20, kWindow);
    MustPrefill({prompt.begin(), prompt.begin() + 700}, mode);
    DamageSegment(1);
    const auto repaired = MustPrefill(prompt, mode);
    EXPECT_EQ(repaired.reused_tokens(), 0);
    EXPECT_EQ(repaired.computed_tokens(), kPrompt);
    EXPECT_EQ(repaired.payload_bytes_fetched(), 0);
    EXPECT_EQ(MatchedTokens(prompt, mode), kPrompt);
    ExpectSame(MustGenerate(prompt, mode, 20, kPrompt),
               GenerateLocally(*runtime_, mode, prompt, 20, kWindow));
  }
}

TEST_F(WorkerTest, AFetchOfWhatIsGoneFailsAndTellsTheCache) {
  const auto prompt = RandomPrompt(1, 400);
  MustPrefill(prompt, kCompactMode);
  v1::MatchPrefixRequest request;
  *request.mutable_namespace_() = runtime_->ns(kCompactMode);
  request.mutable_token_ids()->Assign(prompt.begin(), prompt.end());
  const auto match = service_.client().MatchPrefix(request, Soon());
  ASSERT_TRUE(match.ok());
  ASSERT_EQ(match->segments_size(), 4);
  const Digest second = *Digest::FromRaw(match->segments(1).block_key(), "key");
  ASSERT_TRUE(service_.client().Delete({second}, Soon()).ok());

  const auto cache = LocalCache(*runtime_, kCompactMode, 500, kWindow);
  PrefixPlan plan = PlanPrefix(*match, {.mode = kCompactMode,
                                        .segment_tokens = 128,
                                        .recent_window = kWindow,
                                        .sequence_tokens = 400,
                                        .max_reused = 399});
  EXPECT_EQ(plan.fill.length, 399);
  auto fetch = PrefixFetch::Start(&runtime_->kv(), std::move(plan), cache.get(), Soon());
  ASSERT_TRUE(fetch.ok()) << fetch.status();
  LlamaRunner runner(runtime_->model(), runtime_->pool());
  ForwardOutput out;
  const absl::Status computed = runner.Forward({&prompt.back(), 1}, *cache, &out);
  EXPECT_EQ(computed.code(), StatusCode::kNotFound) << computed;
  const absl::Status status = (*fetch)->Wait();
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("segment 1 is missing"));
}

TEST_F(WorkerTest, AServiceThatWasRestartedIsFilledAgain) {
  const auto prompt = RandomPrompt(1, 700);
  MustPrefill(prompt, kCompactMode);
  service_.Restart();
  // The channel notices when it is used.
  absl::StatusOr<v1::PrefillResult> result = absl::UnknownError("");
  for (const absl::Time deadline = Soon(); !result.ok() && absl::Now() < deadline;) {
    result = RunPrefill(*runtime_, MakePrefill(prompt, kCompactMode));
  }
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->stored_segments(), 6);
  EXPECT_EQ(MustGenerate(prompt, kCompactMode, 1, 700).result.reused_tokens(), 699);
}

TEST_F(WorkerTest, AServiceThatForgetsEverythingInTheMiddleCostsTimeOnly) {
  const auto prompt = ClearPrompt(*runtime_, kCompactMode, kPrompt, 10, kWindow);
  PrefillTask task = MakePrefill(prompt, kCompactMode);
  bool forgot = false;
  task.on_progress = [&](int64_t done, int64_t) {
    if (forgot || done != 512) return;
    forgot = true;
    WaitForSegments(4);
    for (const SegmentSummary& row : service_.core().store.List()) {
      if (row.index > 0) continue;
      EXPECT_TRUE(service_.client().Delete({row.key}, Soon()).ok());
    }
    EXPECT_EQ(service_.Stats().segments(), 0);
  };
  const auto result = RunPrefill(*runtime_, task);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(forgot);
  EXPECT_EQ(MatchedTokens(prompt, kCompactMode), kPrompt);
  ExpectSame(MustGenerate(prompt, kCompactMode, 10, kPrompt),
             GenerateLocally(*runtime_, kCompactMode, prompt, 10, kWindow));
}

TEST_F(WorkerTest, WithoutTheServiceADecoderComputesAndAPrefillFails) {
  const auto prompt = ClearPrompt(*runtime_, kCompactMode, 600, 10, kWindow);
  MustPrefill(prompt, kCompactMode);
  service_.Stop();
  const auto generated = MustGenerate(prompt, kCompactMode, 10, 600);
  ExpectSame(generated, GenerateLocally(*runtime_, kCompactMode, prompt, 10, kWindow));
  EXPECT_EQ(generated.result.reused_tokens(), 0);
  const auto prefill = RunPrefill(*runtime_, MakePrefill(prompt, kCompactMode));
  EXPECT_EQ(prefill.status().code(), StatusCode::kUnavailable) << prefill.status();
}

TEST_F(WorkerTest, SegmentsSealedWhileDecodingAreStoredForTheNextRequest) {
  auto conversation = RandomPrompt(5, 300);
  MustPrefill(conversation, kCompactMode);
  const auto generated = MustGenerate(conversation, kCompactMode, 500, 300);
  // 799 tokens are in the cache: all but the sink and up to window + segment are sealed by then.
  const int64_t sealed = CompactKvCache::CompactSegments(799, 128, kWindow);
  const int64_t fetched = CompactKvCache::CompactSegments(300, 128, kWindow);
  EXPECT_EQ(generated.result.sealed_segments(), sealed - fetched);
  EXPECT_EQ(generated.result.stored_segments(), sealed - 1) << "segment 1 was stored by prefill";
  conversation.insert(conversation.end(), generated.tokens.begin(), generated.tokens.end());
  EXPECT_EQ(MatchedTokens(conversation, kCompactMode), (1 + sealed) * 128);

  // The next turn starts from there.
  conversation.resize(conversation.size() + 30, 7);
  const auto next = MustGenerate(conversation, kCompactMode, 20);
  EXPECT_EQ(next.result.reused_tokens(), (1 + sealed) * 128);
  EXPECT_EQ(next.result.computed_tokens(), 830 - (1 + sealed) * 128);
  EXPECT_EQ(next.tokens.size(), 20);
}

TEST_F(WorkerTest, SealedSegmentsOfAnUnknownPrefixAreNotStored) {
  const auto generated = MustGenerate(RandomPrompt(6, 300), kCompactMode, 300);
  EXPECT_GT(generated.result.sealed_segments(), 0);
  EXPECT_EQ(generated.result.stored_segments(), 0);
  EXPECT_EQ(service_.Stats().segments(), 0);
}

TEST_F(WorkerTest, CallersThatGoAwayEndTheWork) {
  const auto prompt = RandomPrompt(1, 700);
  GenerateTask task = MakeGenerate(prompt, kCompactMode, 100);
  int tokens = 0;
  task.on_token = [&](const SampledToken&) { return ++tokens < 3; };
  EXPECT_EQ(RunDecode(*runtime_, task).status().code(), StatusCode::kCancelled);
  EXPECT_EQ(tokens, 3);

  // While the prompt is computed, too.
  int layers = 0;
  task.cancelled = [&] { return ++layers > 1; };
  EXPECT_EQ(RunDecode(*runtime_, task).status().code(), StatusCode::kCancelled);
  EXPECT_EQ(tokens, 3);

  task.cancelled = nullptr;
  task.deadline = absl::Now() - absl::Seconds(1);
  EXPECT_EQ(RunDecode(*runtime_, task).status().code(), StatusCode::kDeadlineExceeded);
  PrefillTask late = MakePrefill(prompt, kCompactMode);
  late.deadline = absl::Now() - absl::Seconds(1);
  EXPECT_EQ(RunPrefill(*runtime_, late).status().code(), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(service_.Stats().leases(), 0);
}

class EncodingWorkerTest : public WorkerTest, public testing::WithParamInterface<int64_t> {};

TEST_P(EncodingWorkerTest, WhatItEncodesIsStoredAsIfTheServiceHadEncodedIt) {
  const int64_t tokens = GetParam();
  const auto theirs = MustPrefill(RandomPrompt(1000, tokens), kCompactMode);
  const auto prompt = ClearPrompt(*runtime_, kCompactMode, tokens, 10, kWindow);
  PrefillTask task = MakePrefill(prompt, kCompactMode);
  task.encode_here = true;
  int64_t progress = 0;
  task.on_progress = [&](int64_t done, int64_t) { progress = done; };
  const auto ours = RunPrefill(*runtime_, task);
  ASSERT_TRUE(ours.ok()) << ours.status();
  EXPECT_EQ(progress, tokens);
  EXPECT_EQ(ours->computed_tokens(), tokens);
  EXPECT_EQ(ours->stored_segments(), theirs.stored_segments());
  EXPECT_EQ(ours->exact_bytes(), theirs.exact_bytes());
  EXPECT_EQ(ours->compact_bytes(), theirs.compact_bytes());
  if (tokens == kPrompt) {
    EXPECT_LT(ours->payload_bytes_sent(), theirs.payload_bytes_sent());
    EXPECT_GT(ours->max_relative_error(), 0);
  }
  const auto generated = MustGenerate(prompt, kCompactMode, 10, tokens);
  EXPECT_EQ(generated.result.reused_tokens(), tokens - 1);
  ExpectSame(generated, GenerateLocally(*runtime_, kCompactMode, prompt, 10, kWindow));
}

INSTANTIATE_TEST_SUITE_P(Lengths, EncodingWorkerTest,
                         testing::Values<int64_t>(60, 128, 129, 300, kPrompt));

TEST_F(WorkerTest, APrefixThatAWorkerHasEncodedIsContinued) {
  const auto prompt = ClearPrompt(*runtime_, kCompactMode, kPrompt, 10, kWindow);
  PrefillTask task = MakePrefill(prompt, kCompactMode);
  task.encode_here = true;
  task.tokens.resize(700);
  ASSERT_TRUE(RunPrefill(*runtime_, task).ok());
  task.tokens = prompt;
  const auto result = RunPrefill(*runtime_, task);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->reused_tokens(), 5 * 128);
  EXPECT_EQ(MatchedTokens(prompt, kCompactMode), kPrompt);
  const auto generated = MustGenerate(prompt, kCompactMode, 10, kPrompt);
  EXPECT_EQ(generated.result.reused_tokens(), kPrompt - 1);
  // A worker that lets the service encode finds nothing missing.
  EXPECT_EQ(MustPrefill(prompt, kCompactMode).reused_tokens(), kPrompt);
}

TEST_F(WorkerTest, ABoundOnErrorsLeavesTheEncodingToTheService) {
  const auto prompt = RandomPrompt(5, 700);
  PrefillTask task = MakePrefill(prompt, kCompactMode);
  task.encode_here = true;
  task.max_relative_error = 1e-6f;
  const auto result = RunPrefill(*runtime_, task);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GT(result->bounded_segments(), 0);
  EXPECT_GE(result->payload_bytes_sent(), TinyModel::geometry().DenseBytes(700));
}

TEST_F(WorkerTest, WorkersWithAnotherSaltShareNothing) {
  const auto prompt = RandomPrompt(1, 400);
  MustPrefill(prompt, kCompactMode);
  WorkerOptions options;
  options.server = service_.address();
  options.model_dir = model_.folder();
  options.tenant_salt = "other";
  options.recent_window = kWindow;
  const auto other = WorkerRuntime::Create(options);
  ASSERT_TRUE(other.ok()) << other.status();
  const auto result = RunPrefill(**other, MakePrefill(prompt, kCompactMode));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->reused_tokens(), 0);
  EXPECT_EQ(result->stored_segments(), 4);
}

class LongSegmentWorkerTest : public WorkerTest {
 protected:
  LongSegmentWorkerTest() : WorkerTest(/*segment_tokens=*/1024) {}
};

TEST_F(LongSegmentWorkerTest, SegmentsMayBeLongerThanAChunkOfThePrefill) {
  const auto prompt = ClearPrompt(*runtime_, kCompactMode, 2 * 1024 + 500, 10, kWindow);
  const auto prefill = MustPrefill(prompt, kCompactMode);
  EXPECT_EQ(prefill.stored_segments(), 3);
  EXPECT_EQ(MustGenerate(prompt, kCompactMode, 10, 2 * 1024 + 500).result.reused_tokens(),
            2 * 1024 + 499);
}

TEST(WorkerRuntimeTest, SaysWhatIsWrongWithItsOptions) {
  TestService service;
  const TinyModel model;
  const TempFolder other;
  other.Write("wrong.json", DefaultProfile({.layers = 3, .kv_heads = 2, .head_dim = 8}).ToJson());
  other.Write("garbage.json", "{\"name\":");
  WorkerOptions right;
  right.server = service.address();
  right.model_dir = model.folder();
  right.connect_timeout = absl::Milliseconds(300);
  const auto expect = [&](const WorkerOptions& options, StatusCode code, const std::string& words) {
    const auto runtime = WorkerRuntime::Create(options);
    EXPECT_EQ(runtime.status().code(), code) << runtime.status();
    EXPECT_THAT(std::string(runtime.status().message()), HasSubstr(words));
  };
  WorkerOptions options = right;
  options.device = "tpu";
  expect(options, StatusCode::kNotFound, "tpu");
  options = right;
  options.model_dir = other.path() + "/nowhere";
  expect(options, StatusCode::kNotFound, "nowhere");
  options = right;
  options.profile = other.path() + "/wrong.json";
  expect(options, StatusCode::kInvalidArgument, "wrong.json");
  options.profile = other.path() + "/garbage.json";
  expect(options, StatusCode::kInvalidArgument, "garbage.json");
  options.profile = other.path() + "/missing.json";
  expect(options, StatusCode::kNotFound, "missing.json");
  options = right;
  options.server = "127.0.0.1:1";
  expect(options, StatusCode::kUnavailable, "--server: nobody answers at 127.0.0.1:1");

  const auto runtime = WorkerRuntime::Create(right);
  ASSERT_TRUE(runtime.ok()) << runtime.status();
  EXPECT_EQ((*runtime)->segment_tokens(), 128) << "the folder's own profile is found";
  options = right;
  options.profile = "default";
  EXPECT_EQ((*WorkerRuntime::Create(options))->layout()->id(),
            DefaultProfile(TinyModel::geometry()).Id());
}

}  // namespace
}  // namespace fourierkv
