#include "compute/model/llama_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/model/byte_tokenizer.h"
#include "tests/compute/cache/reference_backend.h"
#include "tests/compute/model/temp_folder.h"

namespace fourierkv {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const char kNeedle[] = FOURIERKV_TEST_DATA "/needle-4m";
const char kTinyF16[] = FOURIERKV_TEST_DATA "/tiny-llama-f16";
const char kTinyF32[] = FOURIERKV_TEST_DATA "/tiny-llama-f32";

std::shared_ptr<const LlamaModel> Load(const std::string& folder) {
  auto model = LlamaModel::Load(folder);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

// What reference_logits.py computed in float64.
struct Golden {
  explicit Golden(const std::string& folder) {
    std::ifstream file(folder + "/golden_logits.json");
    const auto json = nlohmann::json::parse(file);
    tokens = json["tokens"].get<std::vector<int32_t>>();
    logits = json["last_logits"].get<std::vector<float>>();
  }
  std::vector<int32_t> tokens;
  std::vector<float> logits;
};

class LlamaRunnerTest : public testing::Test {
 protected:
  std::unique_ptr<DenseKvCache> Cache(const LlamaModel& model, KvDtype dtype = KvDtype::kFp16) {
    return *DenseKvCache::Create(model.config().Geometry(), &backend_, 1000, dtype);
  }
  LlamaRunner Runner(std::shared_ptr<const LlamaModel> model) {
    return LlamaRunner(std::move(model), pool_);
  }

  ReferenceBackend backend_;
  std::shared_ptr<ThreadPool> pool_ = std::make_shared<ThreadPool>(2);
};

double LargestDifference(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
  }
  return largest;
}

TEST_F(LlamaRunnerTest, LogitsEqualTheIndependentReference) {
  for (const char* folder : {kTinyF16, kTinyF32, kNeedle}) {
    SCOPED_TRACE(folder);
    const Golden golden(folder);
    auto model = Load(folder);
    auto cache = Cache(*model);
    LlamaRunner runner = Runner(model);
    ForwardOutput out;
    const absl::Status status = runner.Forward(golden.tokens, *cache, &out);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_LT(LargestDifference(out.logits, golden.logits), 2e-3);
    EXPECT_EQ(cache->length(), golden.tokens.size());
  }
}

TEST_F(LlamaRunnerTest, ChunksDoNotChangeTheLogits) {
  const Golden golden(kTinyF32);
  auto model = Load(kTinyF32);
  LlamaRunner runner = Runner(model);
  auto whole = Cache(*model);
  ForwardOutput all, last, piece;
  ASSERT_TRUE(runner.Forward(golden.tokens, *whole, &all, {.logits = Logits::kAll}).ok());
  const int vocab = model->config().vocab_size;
  ASSERT_EQ(all.logits.size(), golden.tokens.size() * vocab);

  for (int chunk : {1, 7, 64, 1000}) {
    auto cache = Cache(*model);
    ASSERT_TRUE(Prefill(runner, golden.tokens, *cache, &last, chunk).ok());
    EXPECT_LT(LargestDifference(last.logits, std::span(all.logits).last(vocab)), 1e-4) << chunk;
  }
}

TEST_F(LlamaRunnerTest, WithoutLogitsTheCacheIsTheSame) {
  const Golden golden(kTinyF16);
  auto model = Load(kTinyF16);
  LlamaRunner runner = Runner(model);
  auto a = Cache(*model), b = Cache(*model);
  ForwardOutput out;
  ASSERT_TRUE(runner.Forward(golden.tokens, *a, &out, {.logits = Logits::kAll}).ok());
  ASSERT_TRUE(runner.Forward(golden.tokens, *b, &out, {.logits = Logits::kNone}).ok());
  EXPECT_TRUE(out.logits.empty());
  const int64_t n = golden.tokens.size() * model->config().head_dim;
  for (int l = 0; l < model->config().layers; ++l) {
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(a->exact_block(l).v[i], b->exact_block(l).v[i]);
  }
}

TEST_F(LlamaRunnerTest, CallbacksSeeEveryLayerInOrder) {
  auto model = Load(kTinyF16);
  LlamaRunner runner = Runner(model);
  auto cache = Cache(*model);
  ForwardOutput out;
  std::vector<std::string> calls;
  ForwardOptions options;
  options.on_qkv = [&](int layer, int64_t first, int n, const float* q, const float*,
                       const float*) {
    calls.push_back(absl::StrCat("qkv ", layer, " ", first, " ", n));
    EXPECT_TRUE(std::isfinite(q[n * 4 * 8 - 1]));
    return absl::OkStatus();
  };
  options.on_layer = [&](int layer) {
    calls.push_back(absl::StrCat("layer ", layer, " ", cache->exact_block(layer).tokens));
    return absl::OkStatus();
  };
  ASSERT_TRUE(Prefill(runner, std::vector<int32_t>{1, 2, 3, 4, 5}, *cache, &out, 3, options).ok());
  EXPECT_THAT(calls, ElementsAre("qkv 0 0 3", "layer 0 3", "qkv 1 0 3", "layer 1 3", "qkv 0 3 2",
                                 "layer 0 5", "qkv 1 3 2", "layer 1 5"));
}

TEST_F(LlamaRunnerTest, AStoppedPassCanBeRepeated) {
  const Golden golden(kTinyF16);
  auto model = Load(kTinyF16);
  LlamaRunner runner = Runner(model);
  auto cache = Cache(*model);
  ForwardOutput out;
  ForwardOptions options;
  options.on_layer = [](int layer) {
    return layer == 1 ? absl::CancelledError("the caller left") : absl::OkStatus();
  };
  EXPECT_EQ(runner.Forward(golden.tokens, *cache, &out, options),
            absl::CancelledError("the caller left"));
  EXPECT_EQ(cache->length(), 0);
  ASSERT_TRUE(runner.Forward(golden.tokens, *cache, &out).ok());
  EXPECT_LT(LargestDifference(out.logits, golden.logits), 2e-3);
}

TEST_F(LlamaRunnerTest, RefusesBadInput) {
  auto model = Load(kTinyF16);
  LlamaRunner runner = Runner(model);
  auto cache = Cache(*model);
  ForwardOutput out;
  EXPECT_TRUE(absl::IsInvalidArgument(runner.Forward({}, *cache, &out)));
  for (int32_t id : {-1, 32, INT32_MAX, INT32_MIN}) {
    const absl::Status status = runner.Forward(std::vector<int32_t>{1, id}, *cache, &out);
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(std::string(status.message()), HasSubstr("tokens[1]"));
  }
  const std::vector<int32_t> too_long(513, 1);
  EXPECT_TRUE(absl::IsOutOfRange(runner.Forward(too_long, *cache, &out)));
  EXPECT_TRUE(runner.Forward(std::span(too_long).first(512), *cache, &out).ok());
  EXPECT_TRUE(absl::IsOutOfRange(runner.Forward(std::vector<int32_t>{1}, *cache, &out)));
  auto other = *DenseKvCache::Create({2, 2, 16}, &backend_, 1000);
  EXPECT_TRUE(absl::IsInvalidArgument(runner.Forward(std::vector<int32_t>{1}, *other, &out)));
}

TEST_F(LlamaRunnerTest, TheTrainedModelContinuesTheFactInItsPrompt) {
  const Golden golden(kNeedle);
  auto model = Load(kNeedle);
  LlamaRunner runner = Runner(model);
  auto cache = Cache(*model, KvDtype::kBf16);
  ForwardOutput out;
  ASSERT_TRUE(Prefill(runner, golden.tokens, *cache, &out).ok());
  std::vector<int32_t> answer;
  while (answer.size() < 7) {
    const auto best = std::max_element(out.logits.begin(), out.logits.end());
    answer.push_back(static_cast<int32_t>(best - out.logits.begin()));
    ASSERT_TRUE(runner.Forward(std::span(answer).last(1), *cache, &out).ok());
  }
  EXPECT_EQ(DecodeBytes(answer), "4071835");
}

TEST(LlamaModel, LoadRefusesFoldersThatContradictThemselves) {
  const TempFolder folder;
  const auto copy = [&](const char* name) {
    std::filesystem::copy_file(std::string(kTinyF32) + "/" + name, folder.path() + "/" + name,
                               std::filesystem::copy_options::overwrite_existing);
  };
  EXPECT_TRUE(absl::IsNotFound(LlamaModel::Load(folder.path()).status()));
  copy("config.json");
  EXPECT_TRUE(absl::IsNotFound(LlamaModel::Load(folder.path()).status()));
  copy("model.safetensors");
  ASSERT_TRUE(LlamaModel::Load(folder.path()).ok());

  std::ifstream file(folder.path() + "/config.json");
  auto config = nlohmann::json::parse(file);
  const auto load_with = [&](const char* field, int value) {
    auto changed = config;
    changed[field] = value;
    folder.Write("config.json", changed.dump());
    return LlamaModel::Load(folder.path()).status();
  };
  EXPECT_THAT(std::string(load_with("num_hidden_layers", 3).message()), HasSubstr("layers.2"));
  EXPECT_THAT(std::string(load_with("intermediate_size", 24).message()), HasSubstr("[20, 12]"));
  EXPECT_TRUE(absl::IsInvalidArgument(load_with("vocab_size", 33)));
}

TEST(LlamaModel, RevisionDependsOnConfigAndWeights) {
  EXPECT_EQ(Load(kTinyF16)->revision(), Load(kTinyF16)->revision());
  EXPECT_NE(Load(kTinyF16)->revision(), Load(kTinyF32)->revision());
}

}  // namespace
}  // namespace fourierkv
