// The whole path on a trained model: facts hidden in a long prompt are still found when all but the
// first and the last few hundred tokens of the cache are compact.

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <random>

#include "compute/cache/compact_kv_cache.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/model/byte_tokenizer.h"
#include "compute/model/sampler.h"
#include "tests/compute/model/needle_prompt.h"

namespace fourierkv {
namespace {

constexpr int kLength = 6144;
constexpr int kFacts = 12;
constexpr int64_t kWindow = 256;

// Text that the profile was not calibrated on: what describes the model.
std::string Background() {
  std::ifstream file(FOURIERKV_TEST_DATA "/needle-4m/README.md");
  return {std::istreambuf_iterator<char>(file), {}};
}

class NeedleRecall : public testing::Test {
 protected:
  void SetUp() override {
    SCOPED_TRACE(seed_);
    auto model = LlamaModel::Load(FOURIERKV_TEST_DATA "/needle-4m");
    ASSERT_TRUE(model.ok()) << model.status();
    runner_ = std::make_unique<LlamaRunner>(*model, std::make_shared<ThreadPool>());
    auto profile = CodecProfile::FromFile(FOURIERKV_TEST_DATA "/needle-4m/codec_profile.json");
    ASSERT_TRUE(profile.ok()) << profile.status();
    ASSERT_TRUE(profile->CheckFits((*model)->config().Geometry()).ok());
    layout_ = std::make_shared<const ProfileLayout>(*profile);
    prompt_ = MakeNeedlePrompt(Background(), kLength, kFacts, 256, kLength - 512, seed_);
    dense_ = *DenseKvCache::Create((*model)->config().Geometry(), backend_.get(), kLength + 100);
    ForwardOutput out;
    ASSERT_TRUE(Prefill(*runner_, EncodeBytes(prompt_.text), *dense_, &out).ok());
  }

  CompactCacheOptions Options() const { return {kWindow, kLength + 100}; }

  const uint64_t seed_ = std::random_device()();
  const std::unique_ptr<ComputeBackend> backend_ = CreateCpuBackend();
  std::unique_ptr<LlamaRunner> runner_;
  std::shared_ptr<const ProfileLayout> layout_;
  NeedlePrompt prompt_;
  std::unique_ptr<DenseKvCache> dense_;
};

TEST_F(NeedleRecall, CompactCachesAnswerAsDenseOnesDo) {
  SCOPED_TRACE(seed_);
  auto compact = Compacted(*dense_, layout_, backend_.get(), Options());
  ASSERT_TRUE(compact.ok()) << compact.status();
  const CacheStats stats = (*compact)->stats();
  EXPECT_EQ(stats.compact_segments, CompactKvCache::CompactSegments(kLength, 256, kWindow));
  EXPECT_GT(static_cast<double>(stats.dense_bytes - stats.exact_bytes) / stats.compact_bytes, 8.6);

  const auto dense_score = AskNeedles(*runner_, *dense_, prompt_.facts);
  const auto score = AskNeedles(*runner_, **compact, prompt_.facts);
  ASSERT_TRUE(dense_score.ok() && score.ok()) << dense_score.status() << score.status();
  EXPECT_EQ(dense_score->exact, kFacts);
  EXPECT_EQ(score->exact, kFacts) << "smallest margin " << score->smallest_margin;
}

TEST_F(NeedleRecall, DecodingTokenByTokenOnACompactCacheSpellsTheAnswer) {
  SCOPED_TRACE(seed_);
  auto compact = Compacted(*dense_, layout_, backend_.get(), Options());
  ASSERT_TRUE(compact.ok()) << compact.status();
  const NeedleFact& fact = prompt_.facts[0];
  ForwardOutput out;
  ASSERT_TRUE(runner_->Forward(EncodeBytes(NeedleQuestion(fact)), **compact, &out).ok());
  Sampler sampler = *Sampler::Create({});
  std::vector<int32_t> answer;
  for (int i = 0; i < 7; ++i) {
    const auto sampled = sampler.Next(out.logits);
    ASSERT_TRUE(sampled.ok()) << sampled.status();
    answer.push_back(sampled->token);
    ASSERT_TRUE(runner_->Forward(std::span(answer).last(1), **compact, &out).ok());
  }
  EXPECT_EQ(DecodeBytes(answer), fact.digits);
}

}  // namespace
}  // namespace fourierkv
