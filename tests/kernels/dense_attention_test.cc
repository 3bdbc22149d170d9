// Attention of single tokens over pages against float64. Needs a GPU; says so and skips without
// one.

#include "kernels/dense_attention.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "compute/backend/cuda/device_buffer.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/reference_codec.h"

namespace fourierkv {
namespace {

using kernels::kPageTokens;

template <typename T>
DeviceBuffer ToDevice(const std::vector<T>& host) {
  auto buffer = DeviceBuffer::CopyOf(host.data(), host.size() * sizeof(T));
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return *std::move(buffer);
}

class DenseAttention : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: the kernels were not run";
    }
  }
  std::vector<uint16_t> Bf16(size_t n) {
    std::normal_distribution<float> normal;
    std::vector<uint16_t> values(n);
    for (uint16_t& value : values) value = FloatToBf16(normal(random_));
    return values;
  }

  // Sequences of these many tokens, in pages of random lengths, with NaN behind their tokens.
  void Check(const std::vector<int>& lengths, int kv_heads, int group, int dim) {
    SCOPED_TRACE(testing::Message()
                 << lengths.size() << " sequences, the first of " << lengths[0] << " tokens, "
                 << kv_heads << " x " << group << " heads of " << dim);
    const int query_heads = kv_heads * group;
    const int64_t head_stride = (kPageTokens + 1) * dim, page_size = kv_heads * head_stride;
    std::vector<uint16_t> k, v;
    std::vector<int32_t> tokens, offsets = {0};
    // Head by head of each sequence, without gaps.
    std::vector<std::vector<std::vector<double>>> plain_k, plain_v;
    for (int length : lengths) {
      plain_k.emplace_back(kv_heads);
      plain_v.emplace_back(kv_heads);
      for (int left = length; left > 0;) {
        const int n = random_() % 4 == 0 ? 1 + random_() % std::min(left, kPageTokens)
                                         : std::min(left, kPageTokens);
        left -= n;
        tokens.push_back(n);
        for (auto [all, plain] : {std::pair{&k, &plain_k}, std::pair{&v, &plain_v}}) {
          const size_t at = all->size();
          all->resize(at + page_size, 0x7fff);
          for (int h = 0; h < kv_heads; ++h) {
            const std::vector<uint16_t> values = Bf16(n * dim);
            std::copy(values.begin(), values.end(), all->begin() + at + h * head_stride);
            for (uint16_t value : values) plain->back()[h].push_back(Bf16ToFloat(value));
          }
        }
      }
      offsets.push_back(static_cast<int32_t>(tokens.size()));
    }
    k.resize(k.size() + 8);
    v.resize(v.size() + 8);
    tokens.push_back(1);  // so that there is a table
    const DeviceBuffer d_k = ToDevice(k), d_v = ToDevice(v), d_offsets = ToDevice(offsets);
    std::vector<kernels::PageRef> pages;
    for (size_t p = 0; p < tokens.size(); ++p) {
      pages.push_back(
          {d_k.as<uint16_t>() + p * page_size, d_v.as<uint16_t>() + p * page_size, tokens[p], 0});
    }
    const auto batch = static_cast<int32_t>(lengths.size());
    const std::vector<uint16_t> q = Bf16(batch * query_heads * dim);
    const DeviceBuffer d_q = ToDevice(q), d_pages = ToDevice(pages);
    const DeviceBuffer out = ToDevice(std::vector<uint16_t>(q.size(), 0x7fff));
    const int64_t bytes = kernels::DenseAttentionWorkspace(batch, kv_heads, query_heads, dim);
    ASSERT_GT(bytes, 0);
    const DeviceBuffer workspace = ToDevice(std::vector<uint8_t>(bytes, 0xff));
    kernels::DenseAttentionParams params = {};
    params.batch = batch;
    params.kv_heads = kv_heads;
    params.query_heads = query_heads;
    params.head_dim = dim;
    params.scale = 1 / std::sqrt(static_cast<float>(dim));
    params.q = d_q.as<uint16_t>();
    params.out = out.as<uint16_t>();
    params.pages = d_pages.as<kernels::PageRef>();
    params.page_offsets = d_offsets.as<int32_t>();
    params.page_head_stride = head_stride;
    params.workspace = workspace.data();
    params.workspace_bytes = bytes;
    ASSERT_EQ(kernels::LaunchDenseAttention(params, nullptr), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    std::vector<uint16_t> got(q.size());
    ASSERT_TRUE(out.CopyTo(got.data(), got.size() * 2).ok());
    for (int b = 0; b < batch; ++b) {
      for (int h = 0; h < query_heads; ++h) {
        const size_t at = (static_cast<size_t>(b) * query_heads + h) * dim;
        std::vector<double> query(dim), expected(dim, 0.0);
        for (int d = 0; d < dim; ++d) query[d] = Bf16ToFloat(q[at + d]);
        if (lengths[b] > 0) {
          reference::Attend(query, plain_k[b][h / group], plain_v[b][h / group], 1, lengths[b], dim,
                            params.scale, expected, {});
        }
        double error = 0, norm = 0;
        for (int d = 0; d < dim; ++d) {
          const double difference = Bf16ToFloat(got[at + d]) - expected[d];
          error += difference * difference;
          norm += expected[d] * expected[d];
        }
        // Weights and results are rounded to 8 bits.
        ASSERT_LE(std::sqrt(error), 0.01 * std::sqrt(norm))
            << "sequence " << b << " of " << lengths[b] << " tokens, query head " << h;
      }
    }
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 random_{seed_};
};

TEST_F(DenseAttention, RaggedBatchesEqualFloat64) {
  for (const int dim : {64, 128}) {
    for (const int group : {1, 3, 4, 8}) {
      Check({1}, 2, group, dim);
      Check({0, 5, 64, 65, 1000, 0, 77}, 3, group, dim);
      if (HasFatalFailure()) return;
    }
    Check({20000, 3}, 1, 4, dim);
    std::vector<int> many;
    for (int i = 0; i < 150; ++i) many.push_back(static_cast<int>(random_() % 300));
    Check(many, 8, 4, dim);
  }
}

TEST_F(DenseAttention, RefusesWhatDoesNotFit) {
  EXPECT_FALSE(kernels::DenseAttentionFits(8, 32, 96));
  EXPECT_FALSE(kernels::DenseAttentionFits(1, 9, 64));
  EXPECT_FALSE(kernels::DenseAttentionFits(3, 7, 64));
  EXPECT_FALSE(kernels::DenseAttentionFits(0, 0, 64));
  EXPECT_LT(kernels::DenseAttentionWorkspace(0, 1, 1, 64), 0);
  const DeviceBuffer memory = ToDevice(std::vector<uint8_t>(1 << 20));
  kernels::DenseAttentionParams good = {};
  good.batch = good.kv_heads = good.query_heads = 1;
  good.head_dim = 64;
  good.q = memory.as<uint16_t>();
  good.out = memory.as<uint16_t>();
  good.pages = memory.as<kernels::PageRef>();
  good.page_offsets = memory.as<int32_t>();
  good.page_head_stride = 4096;
  good.workspace = memory.data();
  good.workspace_bytes = 1 << 20;
  const auto refused = [&](auto change) {
    kernels::DenseAttentionParams bad = good;
    change(bad);
    EXPECT_EQ(kernels::LaunchDenseAttention(bad, nullptr), cudaErrorInvalidValue);
  };
  refused([](auto& p) { p.q = nullptr; });
  refused([](auto& p) { p.out += 1; });
  refused([](auto& p) { p.pages = nullptr; });
  refused([](auto& p) { p.page_offsets = nullptr; });
  refused([](auto& p) { p.page_head_stride = 63; });
  refused([](auto& p) { p.workspace = nullptr; });
  refused([](auto& p) { p.workspace_bytes = 15; });
  refused([](auto& p) { p.batch = 0; });
  refused([](auto& p) { p.head_dim = 80; });
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
}  // namespace fourierkv
