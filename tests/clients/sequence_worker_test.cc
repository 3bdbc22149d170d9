// Workers with a profile of whole sequences: what the published method gives in one process,
// through the service.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "clients/decode_worker/decode_engine.h"
#include "clients/prefill_worker/prefill_engine.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/cache/sequence_kv_cache.h"
#include "compute/model/llama_runner.h"
#include "tests/clients/worker_fixture.h"
#include "tests/compute/model/temp_folder.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

constexpr auto kMode = v1::CACHE_MODE_COMPACT;
constexpr int kPrompt = 701;
constexpr int kNew = 40;  // longer than the recent window: tokens join the middle

class SequenceWorkerTest : public testing::Test {
 protected:
  SequenceWorkerTest() {
    folder_.Write("faithful.json", SmallSequenceProfile().ToJson());
    WorkerOptions options;
    options.server = service_.address();
    options.model_dir = model_.folder();
    options.profile = absl::StrCat(folder_.path(), "/faithful.json");
    options.threads = 2;
    auto runtime = WorkerRuntime::Create(options);
    if (!runtime.ok()) {
      ADD_FAILURE() << runtime.status();
      std::abort();
    }
    runtime_ = *std::move(runtime);
    prompt_ = RandomPrompt(3, kPrompt);
  }

  PrefillTask MakePrefill(int64_t tokens, int64_t max_new) const {
    PrefillTask task;
    task.tokens.assign(prompt_.begin(), prompt_.begin() + tokens);
    task.max_new_tokens = max_new;
    task.mode = kMode;
    task.deadline = Soon();
    return task;
  }

  v1::PrefillResult MustPrefill(int64_t tokens = kPrompt, int64_t max_new = kNew) {
    const auto result = RunPrefill(*runtime_, MakePrefill(tokens, max_new));
    EXPECT_TRUE(result.ok()) << result.status();
    return result.value_or(v1::PrefillResult());
  }

  GenerateTask MakeGenerate(int64_t prefilled = kPrompt, int64_t capacity = kPrompt + kNew) const {
    GenerateTask task;
    task.tokens = prompt_;
    task.prefilled_tokens = prefilled;
    task.sequence_capacity = capacity;
    task.max_new_tokens = kNew;
    task.mode = kMode;
    task.deadline = Soon();
    return task;
  }

  struct Generated {
    v1::GenerateResult result;
    std::vector<double> log_probabilities;
  };

  Generated MustGenerate(GenerateTask task) {
    Generated generated;
    task.on_token = [&](const SampledToken& token) {
      generated.log_probabilities.push_back(token.log_probability);
      return true;
    };
    const auto result = RunDecode(*runtime_, task);
    EXPECT_TRUE(result.ok()) << result.status();
    generated.result = result.value_or(v1::GenerateResult());
    return generated;
  }

  // Without any service: the first `prefilled` tokens exactly, then encoded, then the rest. The
  // tokens that were sampled do not matter where their probabilities agree.
  std::vector<double> Locally(int64_t prefilled, int64_t capacity = kPrompt + kNew) {
    const auto& layout = runtime_->layout()->sequence();
    LlamaRunner runner(runtime_->model(), runtime_->pool());
    ForwardOutput out;
    auto dense = DenseKvCache::Create(TinyModel::geometry(), runtime_->backend(), prefilled);
    EXPECT_TRUE(Prefill(runner, std::span(prompt_).first(prefilled), **dense, &out).ok());
    auto made = SequenceKvCache::FromDense(layout, runtime_->backend(), runtime_->pool(), **dense,
                                           capacity - prefilled);
    EXPECT_TRUE(made.ok()) << made.status();
    SequenceKvCache& cache = **made;
    if (prefilled == kPrompt) {
      EXPECT_TRUE(cache.ForgetLast().ok());
    }
    EXPECT_TRUE(Prefill(runner, std::span(prompt_).subspan(cache.length()), cache, &out).ok());
    return Continue(runner, cache, out);
  }

  std::vector<double> Continue(LlamaRunner& runner, KvCache& cache, ForwardOutput& out) {
    auto sampler = Sampler::Create({});
    std::vector<double> log_probabilities;
    for (int i = 0; i < kNew; ++i) {
      const auto token = sampler->Next(out.logits);
      log_probabilities.push_back(token->log_probability);
      if (i + 1 == kNew) break;
      EXPECT_TRUE(runner.Forward({&token->token, 1}, cache, &out).ok());
    }
    return log_probabilities;
  }

  static void ExpectSame(const std::vector<double>& actual, const std::vector<double>& expected) {
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-3) << i;
  }

  OpenSegment Stored() {
    auto rows = service_.core().store.List();
    EXPECT_EQ(rows.size(), 1);
    const SegmentWant want{.key = rows.at(0).key, .forms = {SegmentForm::kCompact}};
    auto open = service_.core().reader.Open({&want, 1});
    return (*open)[0];
  }

  TempFolder folder_;
  TinyModel model_;
  TestService service_;
  std::unique_ptr<WorkerRuntime> runtime_;
  std::vector<int32_t> prompt_;
};

TEST_F(SequenceWorkerTest, AFetchedPromptGoesOnAsOneEncodedHere) {
  const auto prefill = MustPrefill();
  EXPECT_EQ(prefill.sequence_capacity(), kPrompt + kNew);
  EXPECT_EQ(prefill.computed_tokens(), kPrompt);
  EXPECT_EQ(prefill.stored_segments(), 1);
  EXPECT_EQ(prefill.exact_bytes(), 0);
  EXPECT_GT(prefill.max_relative_error(), 0);
  const auto generated = MustGenerate(MakeGenerate());
  EXPECT_EQ(generated.result.reused_tokens(), kPrompt - 1);
  EXPECT_EQ(generated.result.payload_bytes_fetched(), prefill.compact_bytes());
  EXPECT_EQ(generated.result.new_tokens(), kNew);
  EXPECT_GT(generated.result.cache_compact_bytes(), 0);
  EXPECT_EQ(generated.result.cache_exact_bytes(), TinyModel::geometry().DenseBytes(32));
  const auto expected = Locally(kPrompt);
  ExpectSame(generated.log_probabilities, expected);
  // Which is far from what the exact cache gives, so that no other path can pass for it.
  LlamaRunner runner(runtime_->model(), runtime_->pool());
  ForwardOutput out;
  auto dense = DenseKvCache::Create(TinyModel::geometry(), runtime_->backend(), kPrompt + kNew);
  ASSERT_TRUE(Prefill(runner, prompt_, **dense, &out).ok());
  const auto exact = Continue(runner, **dense, out);
  double difference = 0;
  for (int i = 0; i < kNew; ++i) difference += std::fabs(exact[i] - expected[i]) / kNew;
  EXPECT_GT(difference, 0.01);
}

TEST_F(SequenceWorkerTest, AQuestionIsComputedOnTheEncodedPrompt) {
  constexpr int kDocument = kPrompt - 100;
  MustPrefill(kDocument, 100 + kNew);
  const auto generated = MustGenerate(MakeGenerate(kDocument));
  EXPECT_EQ(generated.result.reused_tokens(), kDocument);
  EXPECT_EQ(generated.result.computed_tokens(), 100);
  ExpectSame(generated.log_probabilities, Locally(kDocument));
}

TEST_F(SequenceWorkerTest, APromptIsStoredOnceForEachCapacity) {
  MustPrefill();
  const auto again = MustPrefill();
  EXPECT_EQ(again.computed_tokens(), 0);
  EXPECT_EQ(again.deduplicated_segments(), 1);
  EXPECT_EQ(again.payload_bytes_sent(), 0);
  EXPECT_EQ(MustPrefill(kPrompt, kNew + 1).computed_tokens(), kPrompt);
  EXPECT_EQ(service_.Stats().segments(), 2);
}

TEST_F(SequenceWorkerTest, WithoutTheServiceThePromptIsComputedExactlyAndThenEncoded) {
  MustPrefill(kPrompt, kNew + 7);  // of another capacity
  const auto generated = MustGenerate(MakeGenerate());
  EXPECT_EQ(generated.result.reused_tokens(), 0);
  LlamaRunner runner(runtime_->model(), runtime_->pool());
  ForwardOutput out;
  auto cache = runtime_->NewSequenceCache(kPrompt + kNew, kPrompt);
  ASSERT_TRUE(Prefill(runner, prompt_, **cache, &out).ok());
  EXPECT_GT((*cache)->middle_tokens(), 0);
  ExpectSame(generated.log_probabilities, Continue(runner, **cache, out));
}

TEST_F(SequenceWorkerTest, ADamagedSequenceIsComputedAgain) {
  MustPrefill();
  Damage(Stored().source->blob(1, Part::kK), kBlobHeaderBytes + 300);
  const auto generated = MustGenerate(MakeGenerate());
  EXPECT_EQ(generated.result.reused_tokens(), 0);
  EXPECT_EQ(generated.result.new_tokens(), kNew);
  EXPECT_EQ(service_.Stats().compact_bytes(), 0);
  EXPECT_EQ(MustPrefill().computed_tokens(), kPrompt);
}

TEST_F(SequenceWorkerTest, NothingIsGeneratedBeyondTheCapacity) {
  const absl::Status status =
      RunDecode(*runtime_, MakeGenerate(kPrompt, kPrompt + kNew - 1)).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.ToString(), HasSubstr("sequence_capacity is 740"));
}

TEST_F(SequenceWorkerTest, ErrorsCannotBeBoundedInPartsOfAWhole) {
  PrefillTask prefill = MakePrefill(kPrompt, kNew);
  prefill.max_relative_error = 0.1f;
  GenerateTask generate = MakeGenerate();
  generate.max_relative_error = 0.1f;
  for (const absl::Status& status :
       {RunPrefill(*runtime_, prefill).status(), RunDecode(*runtime_, generate).status()}) {
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.ToString(), HasSubstr("max_relative_error"));
  }
}

TEST_F(SequenceWorkerTest, TheExactModeHasSegmentsAllTheSame) {
  PrefillTask prefill = MakePrefill(kPrompt, 0);
  prefill.mode = v1::CACHE_MODE_EXACT;
  const auto stored = RunPrefill(*runtime_, prefill);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->stored_segments(), 3);  // 256, 256 and a tail of 189
  GenerateTask generate = MakeGenerate();
  generate.mode = v1::CACHE_MODE_EXACT;
  EXPECT_EQ(MustGenerate(generate).result.reused_tokens(), kPrompt - 1);
}

}  // namespace
}  // namespace fourierkv
