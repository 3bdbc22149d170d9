// Statistics of K, V and queries, against the definitions.

#include "compute/quality/channel_statistics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/model/llama_runner.h"

namespace fourierkv {
namespace {

constexpr int kSegment = 32;
constexpr int kSegments = 4;

using Rows = std::vector<std::vector<double>>;

class ChannelStatisticsTest : public testing::Test {
 protected:
  void SetUp() override {
    auto model = LlamaModel::Load(FOURIERKV_TEST_DATA "/tiny-llama-f32");
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *model;
    std::mt19937_64 random(seed_);
    for (int i = 0; i < kSegment * kSegments + 5; ++i) {
      tokens_.push_back(static_cast<int32_t>(random() % model_->config().vocab_size));
    }
    options_.segment_tokens = kSegment;
    options_.coefficients = {1, 3};
  }

  absl::StatusOr<ChannelStatistics> Collect() {
    return CollectStatistics(model_, pool_, backend_.get(), tokens_, options_);
  }

  // What one head of one layer computes for every token: `heads` heads in `which` of q, k, v.
  Rows Observe(int which, int layer, int head) {
    const ModelConfig& c = model_->config();
    Rows rows;
    ForwardOptions options;
    options.on_qkv = [&](int at, int64_t, int n, const float* q, const float* k, const float* v) {
      if (at != layer) return absl::OkStatus();
      const float* x = which == 0 ? q : which == 1 ? k : v;
      const int heads = which == 0 ? c.query_heads : c.kv_heads;
      for (int i = 0; i < n; ++i) {
        const float* from = x + (i * heads + head) * c.head_dim;
        rows.emplace_back(from, from + c.head_dim);
      }
      return absl::OkStatus();
    };
    LlamaRunner runner(model_, pool_);
    auto cache = DenseKvCache::Create(c.Geometry(), backend_.get(), 1000);
    ForwardOutput out;
    EXPECT_TRUE(runner.Forward(tokens_, **cache, &out, options).ok());
    return {rows.begin() + kSegment, rows.begin() + kSegment * kSegments};
  }

  static Moment Mean(const Rows& rows) {
    const size_t dim = rows[0].size();
    Moment mean(dim * dim, 0.0);
    for (const auto& row : rows) {
      for (size_t i = 0; i < dim; ++i) {
        for (size_t j = 0; j < dim; ++j) mean[i * dim + j] += row[i] * row[j] / rows.size();
      }
    }
    return mean;
  }

  // Rows less their projection on the first m basis columns, segment by segment.
  static Rows Residual(Rows rows, BasisKind kind, int m) {
    for (size_t first = 0; first < rows.size(); first += kSegment) {
      const Rows segment(rows.begin() + first, rows.begin() + first + kSegment);
      for (size_t d = 0; d < rows[0].size(); ++d) {
        for (int column = 0; column < m; ++column) {
          double c = 0;
          for (int t = 0; t < kSegment; ++t) {
            c += BasisValue(kind, kSegment, column, t) * segment[t][d];
          }
          for (int t = 0; t < kSegment; ++t) {
            rows[first + t][d] -= c * BasisValue(kind, kSegment, column, t);
          }
        }
      }
    }
    return rows;
  }

  static void ExpectNear(const Moment& got, const Moment& want) {
    ASSERT_EQ(got.size(), want.size());
    const double scale = std::abs(*std::max_element(want.begin(), want.end())) + 1e-12;
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i] / scale, want[i] / scale, 1e-3) << i;
  }

  const uint64_t seed_ = std::random_device()();
  const std::shared_ptr<ThreadPool> pool_ = std::make_shared<ThreadPool>();
  const std::unique_ptr<ComputeBackend> backend_ = CreateCpuBackend();
  std::shared_ptr<const LlamaModel> model_;
  std::vector<int32_t> tokens_;
  StatisticsOptions options_;
};

TEST_F(ChannelStatisticsTest, MomentsAreThoseOfTheModelsOwnKAndV) {
  SCOPED_TRACE(seed_);
  const auto statistics = Collect();
  ASSERT_TRUE(statistics.ok()) << statistics.status();
  EXPECT_EQ(statistics->tokens, kSegment * (kSegments - 1));
  const ModelConfig& c = model_->config();
  for (const Part part : kParts) {
    for (int head = 0; head < c.kv_heads; ++head) {
      const int layer = c.layers - 1;
      SCOPED_TRACE(absl::StrCat(PartName(part), " ", head));
      const Rows x = Observe(part == Part::kK ? 1 : 2, layer, head);
      const HeadStatistics& got = statistics->head(layer, head, part);
      ExpectNear(got.energy, Mean(x));
      for (size_t i = 0; i < options_.coefficients.size(); ++i) {
        ExpectNear(got.residual[i], Mean(Residual(x, options_.basis, options_.coefficients[i])));
      }
    }
  }
}

TEST_F(ChannelStatisticsTest, SensitivityOfKIsTheQueriesEnergyAndOfVTheOutputWeights) {
  SCOPED_TRACE(seed_);
  const auto statistics = Collect();
  ASSERT_TRUE(statistics.ok()) << statistics.status();
  const ModelConfig& c = model_->config();
  const int group = c.query_heads / c.kv_heads;
  const int head = c.kv_heads - 1;
  Moment k(static_cast<size_t>(c.head_dim) * c.head_dim, 0.0), v = k;
  for (int g = 0; g < group; ++g) {
    const Moment q = Mean(Observe(0, 0, head * group + g));
    for (size_t i = 0; i < k.size(); ++i) k[i] += q[i];
    const auto& o = model_->layers()[0].o;
    for (int row = 0; row < c.hidden_size; ++row) {
      const float* w = o.data() + (row * c.query_heads + head * group + g) * c.head_dim;
      for (size_t i = 0; i < v.size(); ++i) {
        v[i] += static_cast<double>(w[i / c.head_dim]) * w[i % c.head_dim];
      }
    }
  }
  ExpectNear(statistics->head(0, head, Part::kK).sensitivity, k);
  ExpectNear(statistics->head(0, head, Part::kV).sensitivity, v);
}

TEST_F(ChannelStatisticsTest, AlongADirectionIsTheQuadraticForm) {
  EXPECT_DOUBLE_EQ(Along({2, 1, 1, 5}, std::vector<double>{1, 0}), 2);
  EXPECT_DOUBLE_EQ(Along({2, 1, 1, 5}, std::vector<double>{0.6, 0.8}),
                   2 * 0.36 + 2 * 0.48 + 5 * 0.64);
}

TEST_F(ChannelStatisticsTest, BadOptionsAreRefused) {
  const auto refused = [&](const char* why) {
    const auto got = Collect();
    EXPECT_EQ(got.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(got.status().message()), testing::HasSubstr(why));
  };
  for (const std::vector<int>& bad :
       {std::vector<int>{0}, {3, 3}, {4, 2}, {kSegment + 1}, {-1, 2}}) {
    options_.coefficients = bad;
    refused("must increase, from 1 to 32");
  }
  options_.coefficients = {2};
  options_.basis = BasisKind::kMean;
  refused("from 1 to 1");
  options_.coefficients = {};
  refused("list of coefficients");
  options_ = {BasisKind::kDct2, 0, {1}};
  refused("segments");
  options_ = {BasisKind::kDct2, kSegment, {1}};
  tokens_.resize(3 * kSegment - 1);
  refused("95 calibration tokens are too few: give 96 or more");
  tokens_.assign(3 * kSegment, model_->config().vocab_size);
  refused("vocabulary");
}

}  // namespace
}  // namespace fourierkv
