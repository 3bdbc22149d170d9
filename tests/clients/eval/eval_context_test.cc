// One trained model, one context: what is measured of caches made from it.

#include "clients/eval/eval_context.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <random>
#include <sstream>

namespace fourierkv {
namespace {

constexpr int kContext = 4096;
constexpr int64_t kWindow = 256;

// Text that the shipped profile was not calibrated on.
std::string Background() {
  std::string text;
  for (const char* name : {"/needle-4m/README.md", "/needle-4m/codec_profile.json"}) {
    std::ifstream file(std::string(FOURIERKV_TEST_DATA) + name);
    text.append(std::istreambuf_iterator<char>(file), {});
  }
  return text;
}

class EvalContextTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    backend_ = CreateCpuBackend();
    auto model = LlamaModel::Load(FOURIERKV_TEST_DATA "/needle-4m");
    ASSERT_TRUE(model.ok()) << model.status();
    EvalTextOptions options;
    options.context_tokens = kContext;
    options.tail_tokens = 600;
    options.questions = 4;
    options.seed = seed_;
    auto text = MakeEvalText(Background(), options);
    ASSERT_TRUE(text.ok()) << text.status();
    auto context =
        EvalContext::Create({*model, std::make_shared<ThreadPool>(), backend_.get()}, *text);
    ASSERT_TRUE(context.ok()) << context.status();
    context_ = *std::move(context);
  }
  static void TearDownTestSuite() {
    context_.reset();
    backend_.reset();
  }

  static std::unique_ptr<CacheForm> Compact(const CodecProfile& profile) {
    return MakeCompactForm("compact", std::make_shared<const ProfileLayout>(profile), kWindow,
                           backend_.get());
  }

  static inline const uint64_t seed_ = std::random_device()();
  static inline std::unique_ptr<ComputeBackend> backend_;
  static inline std::unique_ptr<EvalContext> context_;
};

TEST_F(EvalContextTest, ACopyOfTheDenseCacheMeasuresAsTheDenseCache) {
  SCOPED_TRACE(seed_);
  auto metrics = context_->Measure(*MakeDenseForm(backend_.get()));
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  EXPECT_EQ(metrics->bytes.whole_ratio(), 1);
  EXPECT_EQ(metrics->tail.mean_kl(), 0);
  EXPECT_EQ(metrics->tail.top_agreement(), 1);
  ASSERT_EQ(metrics->tasks.size(), 5);
  for (const TaskScore& task : metrics->tasks) {
    SCOPED_TRACE(TaskName(task.task));
    EXPECT_EQ(task.agree, task.questions);
    EXPECT_EQ(task.tokens_agree, task.answer_tokens);
  }
  EXPECT_EQ(metrics->decoded_agree, metrics->decoded);
  EXPECT_THAT(metrics->attention_error, testing::Each(testing::Lt(1e-5)));
}

TEST_F(EvalContextTest, TheShippedProfileFindsEveryNeedle) {
  SCOPED_TRACE(seed_);
  auto profile = CodecProfile::FromFile(FOURIERKV_TEST_DATA "/needle-4m/codec_profile.json");
  ASSERT_TRUE(profile.ok()) << profile.status();
  auto metrics = context_->Measure(*Compact(*profile));
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  EXPECT_GT(metrics->bytes.compact_ratio(), 8.6);
  EXPECT_GT(metrics->bytes.payload_ratio(), metrics->bytes.compact_ratio());
  EXPECT_EQ(metrics->tasks[0].right, metrics->tasks[0].questions);
  EXPECT_EQ(metrics->decoded_agree, metrics->decoded);
  EXPECT_GT(metrics->tail.mean_kl(), 0);
  EXPECT_LT(metrics->tail.mean_kl(), 0.1);
}

}  // namespace
}  // namespace fourierkv
