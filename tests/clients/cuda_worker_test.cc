// Workers on a GPU against a real service and beside workers on the host: what one has stored the
// other continues. Needs a GPU; says so and skips without one.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "clients/decode_worker/decode_engine.h"
#include "clients/prefill_worker/prefill_engine.h"
#include "clients/worker/worker_runtime.h"
#include "compute/cache/compact_kv_cache.h"
#include "compute/model/byte_tokenizer.h"
#include "tests/compute/model/needle_text.h"
#include "tests/kv_service/rpc/service_fixture.h"

namespace fourierkv {
namespace {

const char kNeedle[] = FOURIERKV_TEST_DATA "/needle-4m";
constexpr int kWindow = 256;
constexpr int kSegment = 256;
constexpr int kDigits = 7;
constexpr auto kCompactMode = v1::CACHE_MODE_COMPACT;
constexpr auto kExactMode = v1::CACHE_MODE_EXACT;

class CudaWorkerTest : public testing::Test {
 protected:
  void SetUp() override {
    if (absl::IsUnavailable(CreateBackend("cuda", 1).status())) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: workers were not run on one";
    }
    cuda_ = Runtime("cuda");
    host_ = Runtime("cpu");
    ASSERT_STREQ(cuda_->engine().name(), "cuda");
  }

  std::unique_ptr<WorkerRuntime> Runtime(const std::string& device) {
    WorkerOptions options;
    options.server = service_.address();
    options.model_dir = kNeedle;
    options.device = device;
    options.threads = 2;
    options.kv_memory = int64_t{256} << 20;
    auto runtime = WorkerRuntime::Create(options);
    EXPECT_TRUE(runtime.ok()) << runtime.status();
    return *std::move(runtime);
  }

  v1::PrefillResult MustPrefill(const WorkerRuntime& runtime, const std::vector<int32_t>& prompt,
                                v1::CacheMode mode) {
    PrefillTask task;
    task.tokens = prompt;
    task.mode = mode;
    task.recent_window = kWindow;
    task.deadline = Soon();
    task.encode_here = runtime.engine().encodes_cheaply();
    const auto result = RunPrefill(runtime, task);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.value_or(v1::PrefillResult());
  }

  struct Generated {
    v1::GenerateResult result;
    std::string text;
  };
  Generated MustGenerate(const WorkerRuntime& runtime, const std::vector<int32_t>& prompt,
                         v1::CacheMode mode, int new_tokens = kDigits, bool prefilled = true) {
    Generated generated;
    GenerateTask task;
    task.tokens = prompt;
    if (prefilled) task.prefilled_tokens = static_cast<int64_t>(prompt.size());
    task.max_new_tokens = new_tokens;
    task.mode = mode;
    task.recent_window = kWindow;
    task.deadline = Soon();
    task.on_token = [&](const SampledToken& token) {
      generated.text += DecodeBytes(std::vector<int32_t>{token.token});
      return true;
    };
    const auto result = RunDecode(runtime, task);
    EXPECT_TRUE(result.ok()) << result.status();
    generated.result = result.value_or(v1::GenerateResult());
    return generated;
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 random_{seed_};
  TestService service_;
  std::unique_ptr<WorkerRuntime> cuda_, host_;
};

TEST_F(CudaWorkerTest, WhatOneHasPrefilledTheOtherContinues) {
  for (const v1::CacheMode mode : {kCompactMode, kExactMode}) {
    for (const WorkerRuntime* const prefill : {cuda_.get(), host_.get()}) {
      const NeedleText text(1700 + static_cast<int64_t>(random_() % 256), 2, random_());
      const auto length = static_cast<int64_t>(text.tokens.size());
      SCOPED_TRACE(testing::Message() << v1::CacheMode_Name(mode) << ", prefilled by "
                                      << prefill->engine().name() << ", " << length << " tokens");
      const v1::PrefillResult stored = MustPrefill(*prefill, text.tokens, mode);
      EXPECT_EQ(stored.computed_tokens(), length);
      const auto dense =
          static_cast<uint64_t>(cuda_->layout()->profile().geometry.DenseBytes(length));
      if (mode == kCompactMode && prefill == cuda_.get()) {
        EXPECT_LT(stored.payload_bytes_sent(), dense / 2) << "encoded where it was computed";
      } else {
        EXPECT_GE(stored.payload_bytes_sent(), dense);
      }
      for (const WorkerRuntime* const decode : {cuda_.get(), host_.get()}) {
        SCOPED_TRACE(decode->engine().name());
        const Generated answer = MustGenerate(*decode, text.tokens, mode);
        EXPECT_EQ(answer.text, text.number);
        EXPECT_EQ(answer.result.reused_tokens(), length - 1);
        EXPECT_EQ(answer.result.cache_compact_bytes() > 0, mode == kCompactMode);
      }
      // And both go on from there.
      std::vector<int32_t> longer = text.tokens;
      longer.resize(longer.size() + 300, 'a');
      const WorkerRuntime& other = prefill == cuda_.get() ? *host_ : *cuda_;
      EXPECT_EQ(MustPrefill(other, longer, mode).reused_tokens(), length / kSegment * kSegment);
    }
  }
}

TEST_F(CudaWorkerTest, AnswersAreTheSameWithoutTheService) {
  service_.Stop();
  const NeedleText text(1500, 2, random_());
  const Generated answer = MustGenerate(*cuda_, text.tokens, kCompactMode, kDigits, false);
  EXPECT_EQ(answer.text, text.number);
  EXPECT_EQ(answer.result.computed_tokens(), text.tokens.size());
}

TEST_F(CudaWorkerTest, WhatIsEncodedWhileDecodingIsStored) {
  const NeedleText text(1100, 1, random_());
  MustPrefill(*cuda_, text.tokens, kCompactMode);
  const Generated generated = MustGenerate(*cuda_, text.tokens, kCompactMode, 2 * kSegment + 10);
  EXPECT_GE(generated.result.sealed_segments(), 2);
  EXPECT_GT(generated.result.stored_segments(), 0);
  // Prompt and answer as the prompt of a longer turn: fetched by the host's worker.
  std::vector<int32_t> next = text.tokens;
  const std::vector<int32_t> answer = EncodeBytes(generated.text);
  next.insert(next.end(), answer.begin(), answer.end());
  const Generated more = MustGenerate(*host_, next, kCompactMode, 3, false);
  EXPECT_GT(more.result.reused_tokens(), text.tokens.size());
}

TEST_F(CudaWorkerTest, RequestsAreServedTogether) {
  std::vector<NeedleText> texts;
  for (int i = 0; i < 4; ++i) texts.emplace_back(900 + 411 * i, 2, random_());
  std::vector<std::string> answers(texts.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < texts.size(); ++i) {
    threads.emplace_back([&, i] {
      MustPrefill(*cuda_, texts[i].tokens, kCompactMode);
      answers[i] = MustGenerate(*cuda_, texts[i].tokens, kCompactMode).text;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(answers[i], texts[i].number) << i;
}

}  // namespace
}  // namespace fourierkv
