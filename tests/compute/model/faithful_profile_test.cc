// The published choice of channels, and a model that runs on the published form.

#include "compute/model/faithful_profile.h"

#include <gtest/gtest.h>

#include <cmath>

#include "compute/cache/sequence_kv_cache.h"
#include "compute/model/llama_runner.h"

namespace fourierkv {
namespace {

TEST(FaithfulShare, IsThePublishedOneForThirtyTwoLayers) {
  for (int l = 0; l < 32; ++l) {
    const double k = l < 4 ? 0.9 : l >= 24 ? 0.5 : 0.8, v = l < 4 ? 0.95 : l >= 24 ? 0.7 : 0.8;
    EXPECT_EQ(FaithfulShare(l, 32, Part::kK), k) << l;
    EXPECT_EQ(FaithfulShare(l, 32, Part::kV), v) << l;
  }
}

class FaithfulModel : public ::testing::Test {
 protected:
  FaithfulModel() {
    for (int i = 0; i < 120; ++i) tokens_.push_back((i * i + i / 9) % 32);
  }

  std::vector<float> Logits(KvCache& cache) {
    LlamaRunner runner(model_, pool_);
    ForwardOutput out;
    const absl::Status status = runner.Forward(std::vector<int32_t>{5, 9, 3}, cache, &out);
    EXPECT_TRUE(status.ok()) << status;
    return out.logits;
  }

  std::unique_ptr<DenseKvCache> Prompt() {
    auto cache = DenseKvCache::Create(model_->config().Geometry(), backend_.get(), 200);
    LlamaRunner runner(model_, pool_);
    ForwardOutput ignored;
    EXPECT_TRUE(Prefill(runner, tokens_, **cache, &ignored, 50).ok());
    return *std::move(cache);
  }

  std::shared_ptr<const LlamaModel> model_ =
      *LlamaModel::Load(FOURIERKV_TEST_DATA "/tiny-llama-f16");
  std::shared_ptr<ThreadPool> pool_ = std::make_shared<ThreadPool>(2);
  std::unique_ptr<ComputeBackend> backend_ = CreateCpuBackend(2);
  std::vector<int32_t> tokens_;
  FaithfulOptions options_{.name = "test",
                           .scope = {.sink_tokens = 4, .recent_tokens = 20, .frequencies = 8}};
};

TEST_F(FaithfulModel, HasItsSharesOfSpectralChannels) {
  const auto profile = FaithfulProfile(model_, pool_, backend_.get(), tokens_, options_);
  ASSERT_TRUE(profile.ok()) << profile.status();
  const KvGeometry& g = profile->geometry;
  ASSERT_EQ(g, model_->config().Geometry());
  for (int l = 0; l < g.layers; ++l) {
    for (Part part : kParts) {
      size_t spectral = 0;
      for (int h = 0; h < g.kv_heads; ++h) {
        for (const Band& band : profile->head(l, h, part).bands) {
          if (band.spectral()) spectral += band.channels.size();
        }
      }
      const double share = FaithfulShare(l, g.layers, part);
      EXPECT_EQ(spectral, std::floor(share * g.kv_heads * g.head_dim + 1e-9))
          << l << PartName(part);
    }
  }
}

TEST_F(FaithfulModel, NeedsMoreTokensThanItKeepsExactly) {
  tokens_.resize(40);
  const auto profile = FaithfulProfile(model_, pool_, backend_.get(), tokens_, options_);
  EXPECT_EQ(profile.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(profile.status().message().find("give 41 to"), absl::string_view::npos);
}

TEST_F(FaithfulModel, GeneratesOnASequenceCacheAsOnADenseOneIfEveryChannelIsResident) {
  auto profile = FaithfulProfile(model_, pool_, backend_.get(), tokens_, options_);
  ASSERT_TRUE(profile.ok()) << profile.status();
  const auto dense = Prompt();
  const std::vector<float> expected = Logits(*Prompt());
  const auto distance = [&](const CodecProfile& p) {
    auto cache = SequenceKvCache::FromDense(std::make_shared<const SequenceLayout>(p),
                                            backend_.get(), pool_, *dense, 10);
    EXPECT_TRUE(cache.ok()) << cache.status();
    EXPECT_EQ((*cache)->middle_tokens(), 96);
    const std::vector<float> got = Logits(**cache);
    EXPECT_EQ((*cache)->middle_tokens(), 99);
    float largest = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      largest = std::max(largest, std::abs(got[i] - expected[i]));
    }
    return largest;
  };
  EXPECT_GT(distance(*profile), 1e-4) << "spectral channels lose something";
  for (HeadProfile& head : profile->heads) {
    Band all{0, 16, {}};
    for (int d = 0; d < profile->geometry.head_dim; ++d) {
      all.channels.push_back(static_cast<uint16_t>(d));
    }
    head.bands = {all};
  }
  EXPECT_LT(distance(*profile), 1e-4);
}

}  // namespace
}  // namespace fourierkv
