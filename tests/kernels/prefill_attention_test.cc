// Prefill attention against float64 over the same 16-bit values. Needs a GPU; says so and skips
// without one.

#include "kernels/prefill_attention.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "compute/backend/cuda/device_buffer.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/reference_codec.h"

namespace fourierkv {
namespace {

struct Case {
  int head_dim;
  int kv_heads;
  int group;
  int query_tokens;
  int tokens;
  KvDtype dtype = KvDtype::kBf16;
  bool float_io = true;
  int padding = 0;  // elements between the tokens of q and of out
};

template <typename T>
DeviceBuffer OnDevice(const std::vector<T>& host) {
  absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::CopyOf(host.data(), host.size() * sizeof(T));
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return buffer.ok() ? *std::move(buffer) : DeviceBuffer();
}

// One layer of a sequence, cut into tiles of random length that lie apart, with NaN between them.
class Sequence {
 public:
  Sequence(const Case& test, std::mt19937& random) : test_(test) {
    std::normal_distribution<float> normal;
    const int d = test.head_dim;
    std::vector<kernels::DenseTile> tiles;
    std::vector<uint16_t> k, v;
    values_[0].resize(test.kv_heads);
    values_[1].resize(test.kv_heads);
    for (int first = 0; first < test.tokens;) {
      const int most = std::min(kernels::kDenseTileTokens, test.tokens - first);
      const int tokens = random() % 3 == 0 ? 1 + static_cast<int>(random() % most) : most;
      const int64_t head_stride = (tokens + static_cast<int>(random() % 3)) * d;
      const size_t at = k.size();
      tiles.push_back(
          {reinterpret_cast<const uint16_t*>(at), nullptr, head_stride, first, tokens, 0});
      for (int p = 0; p < 2; ++p) {
        std::vector<uint16_t>& to = p == 0 ? k : v;
        to.resize(at + test.kv_heads * head_stride, 0x7fff);  // NaN in either type
        for (int h = 0; h < test.kv_heads; ++h) {
          for (int i = 0; i < tokens * d; ++i) {
            const uint16_t value = FloatToKv(normal(random), test.dtype);
            to[at + h * head_stride + i] = value;
            values_[p][h].push_back(KvToFloat(value, test.dtype));
          }
        }
      }
      first += tokens;
    }
    k_ = OnDevice(k);
    v_ = OnDevice(v);
    for (kernels::DenseTile& tile : tiles) {
      const auto at = reinterpret_cast<size_t>(tile.k);
      tile.k = k_.as<uint16_t>() + at;
      tile.v = v_.as<uint16_t>() + at;
    }
    count_ = static_cast<int>(tiles.size());
    tiles_ = OnDevice(tiles);
  }

  const kernels::DenseTile* tiles() const { return tiles_.as<kernels::DenseTile>(); }
  int count() const { return count_; }
  // [tokens][head_dim] of one head.
  const std::vector<double>& values(int part, int head) const { return values_[part][head]; }

 private:
  const Case test_;
  std::vector<std::vector<double>> values_[2];
  DeviceBuffer k_, v_, tiles_;
  int count_ = 0;
};

// Queries and results as the kernel takes and gives them.
class Vectors {
 public:
  Vectors(const Case& test, float deviation, std::mt19937& random) : test_(test) {
    std::normal_distribution<float> normal(0, deviation);
    stride_ = static_cast<int64_t>(test.kv_heads) * test.group * test.head_dim + test.padding;
    size_ = stride_ * test.query_tokens;
    std::vector<float> q(size_);
    std::vector<uint16_t> narrow(size_);
    for (int64_t i = 0; i < size_; ++i) {
      narrow[i] = FloatToKv(normal(random), test.dtype);
      // What the kernel makes of a float, too: rounding is to nearest.
      q[i] = KvToFloat(narrow[i], test.dtype);
    }
    q_ = q;
    device_q_ = test.float_io ? OnDevice(q) : OnDevice(narrow);
    out_ = test.float_io ? OnDevice(std::vector<float>(size_, NAN))
                         : OnDevice(std::vector<uint16_t>(size_, 0x7fff));
    lse_ = OnDevice(std::vector<float>(test.query_tokens * test.kv_heads * test.group, NAN));
  }

  int64_t stride() const { return stride_; }
  const void* q() const { return device_q_.data(); }
  void* out() const { return out_.data(); }
  float* lse() const { return lse_.as<float>(); }
  float q(int token, int head, int channel) const {
    return q_[token * stride_ + head * test_.head_dim + channel];
  }
  std::vector<float> Out() const {
    std::vector<float> out(size_);
    if (test_.float_io) {
      EXPECT_TRUE(out_.CopyTo(out.data(), size_ * sizeof(float)).ok());
      return out;
    }
    std::vector<uint16_t> narrow(size_);
    EXPECT_TRUE(out_.CopyTo(narrow.data(), size_ * sizeof(uint16_t)).ok());
    for (int64_t i = 0; i < size_; ++i) out[i] = KvToFloat(narrow[i], test_.dtype);
    return out;
  }
  std::vector<float> Lse() const {
    std::vector<float> lse(test_.query_tokens * test_.kv_heads * test_.group);
    EXPECT_TRUE(lse_.CopyTo(lse.data(), lse.size() * sizeof(float)).ok());
    return lse;
  }

 private:
  const Case test_;
  int64_t stride_ = 0;
  int64_t size_ = 0;
  std::vector<float> q_;
  DeviceBuffer device_q_, out_, lse_;
};

class PrefillAttention : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: the kernels were not run";
    }
  }

  static kernels::PrefillAttentionParams Params(const Case& test, const Sequence& sequence,
                                                const Vectors& vectors) {
    kernels::PrefillAttentionParams params = {};
    params.kv_heads = test.kv_heads;
    params.query_heads = test.kv_heads * test.group;
    params.head_dim = test.head_dim;
    params.query_tokens = test.query_tokens;
    params.dtype = static_cast<kernels::ElementType>(test.dtype);
    params.float_io = test.float_io;
    params.scale = 1 / std::sqrt(static_cast<float>(test.head_dim));
    params.tiles = sequence.tiles();
    params.tile_count = sequence.count();
    params.tokens = test.tokens;
    params.q = vectors.q();
    params.out = vectors.out();
    params.q_stride = params.out_stride = vectors.stride();
    params.lse = vectors.lse();
    return params;
  }

  void Check(const Case& test, float deviation = 1) {
    SCOPED_TRACE(testing::Message()
                 << "D " << test.head_dim << ", " << test.kv_heads << " KV heads, G " << test.group
                 << ", " << test.query_tokens << " queries of " << test.tokens << " tokens, "
                 << (test.dtype == KvDtype::kBf16 ? "bf16" : "fp16")
                 << (test.float_io ? ", float queries" : "") << ", padding " << test.padding);
    const Sequence sequence(test, random_);
    const Vectors vectors(test, deviation, random_);
    const kernels::PrefillAttentionParams params = Params(test, sequence, vectors);
    ASSERT_EQ(kernels::LaunchPrefillAttention(params, nullptr), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    const std::vector<float> out = vectors.Out(), lse = vectors.Lse();

    const int d = test.head_dim;
    double error = 0, norm = 0;
    int reported = 0;
    for (int token = 0; token < test.query_tokens; ++token) {
      const int64_t visible = test.tokens - (test.query_tokens - 1 - token);
      for (int h = 0; h < test.kv_heads; ++h) {
        std::vector<double> q(test.group * d), want(q.size()), want_lse(test.group);
        for (int i = 0; i < test.group * d; ++i) q[i] = vectors.q(token, h * test.group, i);
        reference::Attend(q, std::span(sequence.values(0, h)).first(visible * d),
                          std::span(sequence.values(1, h)).first(visible * d), test.group, visible,
                          d, params.scale, want, want_lse);
        for (int i = 0; i < test.group * d; ++i) {
          const double got = out[token * vectors.stride() + h * test.group * d + i];
          error += (got - want[i]) * (got - want[i]);
          norm += want[i] * want[i];
          if (!(std::abs(got - want[i]) <= 0.05 + 0.05 * std::abs(want[i])) && ++reported <= 5) {
            ADD_FAILURE() << "token " << token << ", KV head " << h << ", member " << i / d
                          << ", channel " << i % d << ": " << got << " instead of " << want[i];
          }
        }
        for (int g = 0; g < test.group; ++g) {
          const double got = lse[(token * test.kv_heads + h) * test.group + g];
          if (!(std::abs(got - want_lse[g]) <= 1e-3 + 1e-5 * std::abs(want_lse[g])) &&
              ++reported <= 5) {
            ADD_FAILURE() << "token " << token << ", KV head " << h << ", member " << g
                          << ": log-sum-exp " << got << " instead of " << want_lse[g];
          }
        }
      }
    }
    // Weights are rounded to 8 or 11 bits, and the results if they are 16 bits wide.
    EXPECT_LE(std::sqrt(error / norm), test.dtype == KvDtype::kBf16 ? 4e-3 : 6e-4);
    // What lies between the tokens is nobody's.
    for (int token = 0; token < test.query_tokens; ++token) {
      for (int64_t i = vectors.stride() - test.padding; i < vectors.stride(); ++i) {
        ASSERT_TRUE(std::isnan(out[token * vectors.stride() + i]));
      }
    }
  }

  const unsigned seed_ = std::random_device{}();
  std::mt19937 random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
};

TEST_F(PrefillAttention, AgreesWithFloat64ForEveryHeadDimension) {
  for (const int head_dim : {64, 96, 128, 256, 8, 16, 40, 72, 80, 104, 136, 192, 320, 512}) {
    for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp16}) {
      Check({head_dim, 2, 4, 37, 150, dtype, true});
      Check({head_dim, 1, 3, 5, 77, dtype, false, 16});
    }
  }
}

TEST_F(PrefillAttention, AgreesWithFloat64ForEveryGroup) {
  for (const int group : {1, 2, 3, 5, 7, 8, 16, 64}) {
    Check({64, 2, group, 19, 90});
    Check({128, 1, group, 1, 65, KvDtype::kFp16});
  }
}

TEST_F(PrefillAttention, AgreesWithFloat64ForOddLengths) {
  for (const int tokens : {1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 300, 700}) {
    Check({128, 2, 2, tokens, tokens});  // the queries' own tokens are all there are
    Check({64, 1, 1, 1, tokens});
    Check({96, 1, 4, (tokens + 1) / 2, tokens, KvDtype::kBf16, false});
  }
}

TEST_F(PrefillAttention, LargeScoresStayFinite) {
  const Case test = {128, 2, 4, 9, 200, KvDtype::kFp16};
  const Sequence sequence(test, random_);
  const Vectors vectors(test, 1000, random_);
  kernels::PrefillAttentionParams params = Params(test, sequence, vectors);
  for (const float scale : {1.0f, -1.0f}) {
    params.scale = scale;
    ASSERT_EQ(kernels::LaunchPrefillAttention(params, nullptr), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    for (const float x : vectors.Out()) ASSERT_TRUE(std::isfinite(x));
    for (const float x : vectors.Lse()) ASSERT_TRUE(std::isfinite(x));
  }
}

TEST_F(PrefillAttention, LseIsOptional) {
  const Case test = {64, 1, 2, 3, 10};
  const Sequence sequence(test, random_);
  const Vectors vectors(test, 1, random_);
  kernels::PrefillAttentionParams params = Params(test, sequence, vectors);
  params.lse = nullptr;
  EXPECT_EQ(kernels::LaunchPrefillAttention(params, nullptr), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_TRUE(std::isnan(vectors.Lse()[0]));
}

TEST_F(PrefillAttention, RefusesWhatItCannotRun) {
  const Case test = {64, 2, 2, 3, 10};
  const Sequence sequence(test, random_);
  const Vectors vectors(test, 1, random_);
  const auto refused = [&](auto spoil) {
    kernels::PrefillAttentionParams params = Params(test, sequence, vectors);
    spoil(params);
    EXPECT_EQ(kernels::LaunchPrefillAttention(params, nullptr), cudaErrorInvalidValue);
  };
  refused([](auto& p) { p.q = nullptr; });
  refused([](auto& p) { p.out = nullptr; });
  refused([](auto& p) { p.tiles = nullptr; });
  refused([](auto& p) { p.q = static_cast<const float*>(p.q) + 1; });
  refused([](auto& p) { p.kv_heads = 0; });
  refused([](auto& p) { p.query_heads = 3; });
  refused([](auto& p) { p.query_heads = 0; });
  refused([](auto& p) { p.head_dim = 0; });
  refused([](auto& p) { p.head_dim = 60; });
  refused([](auto& p) { p.head_dim = 520; });
  refused([](auto& p) { p.query_tokens = 0; });
  refused([](auto& p) { p.query_tokens = 11; });  // there are 10 tokens
  refused([](auto& p) { p.query_tokens = std::numeric_limits<int32_t>::max(); });
  refused([](auto& p) { p.tile_count = 0; });
  refused([](auto& p) { p.q_stride -= 8; });
  refused([](auto& p) { p.out_stride += 4; });
  refused([](auto& p) { p.dtype = static_cast<kernels::ElementType>(3); });
}

}  // namespace
}  // namespace fourierkv
