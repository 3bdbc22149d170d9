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

constexpr int kContext = 3072;
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
    options.tail_tokens = 400;
    options.questions = 3;
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

TEST_F(EvalContextTest, TheShippedProfileFindsNeedles) {
  SCOPED_TRACE(seed_);
  auto profile = CodecProfile::FromFile(FOURIERKV_TEST_DATA "/needle-4m/codec_profile.json");
  ASSERT_TRUE(profile.ok()) << profile.status();
  auto metrics = context_->Measure(*Compact(*profile));
  ASSERT_TRUE(metrics.ok()) << metrics.status();
  EXPECT_GT(metrics->bytes.compact_ratio(), 8.6);
  EXPECT_GT(metrics->bytes.payload_ratio(), metrics->bytes.compact_ratio());
  // The model is unsure of one fact in some hundreds, and one byte in some thousands is as likely
  // as another, so that rounding decides.
  EXPECT_GE(metrics->tasks[0].right, metrics->tasks[0].questions - 1);
  EXPECT_GE(metrics->decoded_agree, metrics->decoded - 1);
  EXPECT_GT(metrics->tail.mean_kl(), 0);
  EXPECT_LT(metrics->tail.mean_kl(), 0.1);
}

// A form that takes its tokens one at a time.
class OneByOne final : public CacheForm {
 public:
  explicit OneByOne(std::unique_ptr<CacheForm> form)
      : CacheForm(form->name()), form_(std::move(form)) {}
  absl::StatusOr<FormedCache> Make(const DenseKvCache& dense, int64_t max_tokens) const override {
    return form_->Make(dense, max_tokens);
  }
  int64_t ChunkTokens(int64_t) const override { return 1; }

 private:
  const std::unique_ptr<CacheForm> form_;
};

TEST_F(EvalContextTest, TheTailSeesWhatItWouldSeeTokenByToken) {
  SCOPED_TRACE(seed_);
  const CodecProfile profile = UniformProfile(context_->dense().geometry(), 0.9, 0.9, 2, 4);
  const MeasureOptions only_tail = {.recall = false, .attention = false};
  auto chunks = context_->Measure(*Compact(profile), only_tail);
  auto tokens = context_->Measure(OneByOne(Compact(profile)), only_tail);
  ASSERT_TRUE(chunks.ok() && tokens.ok()) << chunks.status() << tokens.status();
  ASSERT_EQ(chunks->tail.nll.size(), tokens->tail.nll.size());
  EXPECT_GT(chunks->tail.mean_kl(), 1e-3);  // it matters what is compressed when
  for (size_t i = 0; i < chunks->tail.nll.size(); ++i) {
    ASSERT_NEAR(chunks->tail.nll[i], tokens->tail.nll[i], 0.02) << i;
  }
}

TEST_F(EvalContextTest, FailuresAreReported) {
  KvGeometry other = context_->dense().geometry();
  other.layers += 1;
  EXPECT_EQ(context_->Measure(*Compact(UniformProfile(other, 0, 0, 8, 4))).status().code(),
            absl::StatusCode::kInvalidArgument);
  auto model = LlamaModel::Load(FOURIERKV_TEST_DATA "/tiny-llama-f32");
  ASSERT_TRUE(model.ok()) << model.status();
  const EvalEngine tiny = {*model, std::make_shared<ThreadPool>(), backend_.get()};
  const auto context = EvalContext::Create(tiny, {"some text", "", {}});
  EXPECT_THAT(std::string(context.status().message()), testing::HasSubstr("cannot read bytes"));
}

}  // namespace
}  // namespace fourierkv
