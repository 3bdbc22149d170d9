// Attention in the published form against float64. Needs a GPU; says so and skips without one.

#include "kernels/sequence_attention.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "compute/base/bfloat16.h"
#include "compute/codec/sequence_payload_check.h"
#include "compute/codec/sequence_reference.h"
#include "tests/kernels/sequence_batch.h"

namespace fourierkv {
namespace {

struct Case {
  int head_dim = 128;
  int group = 4;
  SequenceScope scope;
  int coefficient_bits = 16;
  std::vector<int> k_spectral, v_spectral;  // of each KV head
  struct Length {
    int64_t tokens, capacity;
  };
  std::vector<Length> lengths;
  KvDtype dtype = KvDtype::kBf16;
  bool float_io = true;
};

DeviceBuffer Upload(const void* data, size_t size) {
  absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::CopyOf(data, size);
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return buffer.ok() ? *std::move(buffer) : DeviceBuffer();
}

DeviceBuffer Room(size_t size) {
  return Upload(std::vector<std::byte>(size, std::byte{0xff}).data(), size);
}

class SequenceAttention : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: the kernels were not run";
    }
    const unsigned seed = std::random_device{}();
    trace_ =
        std::make_unique<testing::ScopedTrace>(__FILE__, __LINE__, "seed " + std::to_string(seed));
    random_.seed(seed);
  }

  int Random(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  std::mt19937 random_;
  std::unique_ptr<testing::ScopedTrace> trace_;
};

// A batch on the device with queries and room for results.
class Running {
 public:
  Running(const Case& c, std::mt19937& random)
      : case_(c),
        layout_(SequenceProfile(c.head_dim, c.scope, c.coefficient_bits, c.k_spectral, c.v_spectral,
                                random)) {
    EXPECT_TRUE(layout_.profile().Validate().ok()) << layout_.profile().Validate();
    std::vector<const SequencePayloads*> pointers;
    for (const Case::Length& length : c.lengths) {
      sequences_.push_back(std::make_unique<SequencePayloads>(
          RandomSequence(k(), v(), length.tokens, length.capacity, c.dtype, random)));
      EXPECT_TRUE(
          CheckSequencePayload(k(), length.tokens, length.capacity, c.dtype, sequences_.back()->k)
              .ok());
      pointers.push_back(sequences_.back().get());
    }
    absl::StatusOr<SequenceBatch> batch = SequenceBatch::Create(k(), v(), pointers);
    EXPECT_TRUE(batch.ok()) << batch.status();
    batch_ = *std::move(batch);

    std::normal_distribution<float> normal;
    const size_t elements = c.lengths.size() * query_heads() * c.head_dim;
    std::vector<uint16_t> narrow(elements);
    for (size_t i = 0; i < elements; ++i) {
      q_.push_back(normal(random));
      if (c.float_io) continue;
      narrow[i] = FloatToKv(q_[i], c.dtype);
      q_[i] = KvToFloat(narrow[i], c.dtype);
    }
    device_q_ = c.float_io ? Upload(q_.data(), 4 * elements) : Upload(narrow.data(), 2 * elements);
    out_ = Room(elements * (c.float_io ? 4 : 2));
    lse_ = Room(c.lengths.size() * query_heads() * 4);

    params_.query_heads = query_heads();
    params_.dtype =
        c.dtype == KvDtype::kBf16 ? kernels::ElementType::kBf16 : kernels::ElementType::kFp16;
    params_.float_io = c.float_io;
    params_.scale = 1 / std::sqrt(static_cast<float>(c.head_dim));
    params_.q = device_q_.data();
    params_.out = out_.data();
    params_.lse = lse_.as<float>();
    batch_.Describe(&params_);
    const int64_t bytes = kernels::SequenceAttentionWorkspace(params_);
    EXPECT_GT(bytes, 0);
    workspace_ = Room(bytes);
    params_.workspace = workspace_.data();
    params_.workspace_bytes = bytes;
  }

  const SequencePart& k() const { return layout_.part(0, Part::kK); }
  const SequencePart& v() const { return layout_.part(0, Part::kV); }
  const SequencePayloads& sequence(size_t b) const { return *sequences_[b]; }
  const kernels::SequenceAttentionParams& params() const { return params_; }
  int query_heads() const { return static_cast<int>(case_.k_spectral.size()) * case_.group; }
  int64_t heads() const { return static_cast<int64_t>(sequences_.size()) * query_heads(); }
  std::span<const float> q(int64_t first_head, int count) const {
    return std::span(q_).subspan(first_head * case_.head_dim, size_t{1} * count * case_.head_dim);
  }

  void Launch() {
    ASSERT_EQ(kernels::LaunchSequenceAttention(params_, nullptr), cudaSuccess);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << cudaGetErrorString(cudaGetLastError());
  }
  std::vector<float> Out() const {
    std::vector<float> out(heads() * case_.head_dim);
    std::vector<uint16_t> narrow(out.size());
    if (case_.float_io) {
      EXPECT_TRUE(out_.CopyTo(out.data(), out.size() * 4).ok());
      return out;
    }
    EXPECT_TRUE(out_.CopyTo(narrow.data(), narrow.size() * 2).ok());
    for (size_t i = 0; i < out.size(); ++i) out[i] = KvToFloat(narrow[i], case_.dtype);
    return out;
  }
  std::vector<float> Lse() const {
    std::vector<float> lse(heads());
    EXPECT_TRUE(lse_.CopyTo(lse.data(), lse.size() * 4).ok());
    return lse;
  }

 private:
  const Case case_;
  const SequenceLayout layout_;
  std::vector<std::unique_ptr<SequencePayloads>> sequences_;
  SequenceBatch batch_;
  std::vector<float> q_;
  DeviceBuffer device_q_, out_, lse_, workspace_;
  kernels::SequenceAttentionParams params_ = {};
};

std::string Describe(const Case& c) {
  std::string text =
      "head_dim " + std::to_string(c.head_dim) + ", group " + std::to_string(c.group) +
      ", frequencies " + std::to_string(c.scope.frequencies) + ", bits " +
      std::to_string(c.coefficient_bits) + ", rescale " + std::to_string(c.scope.peak_rescale) +
      ", dtype " + std::to_string(static_cast<int>(c.dtype)) + ", float " +
      std::to_string(c.float_io) + ", spectral";
  for (size_t h = 0; h < c.k_spectral.size(); ++h) {
    text += " " + std::to_string(c.k_spectral[h]) + "/" + std::to_string(c.v_spectral[h]);
  }
  text += ", lengths";
  for (const auto& length : c.lengths) {
    text += " " + std::to_string(length.tokens) + "/" + std::to_string(length.capacity);
  }
  return text;
}

void CheckCase(const Case& c, std::mt19937& random) {
  SCOPED_TRACE(Describe(c));
  Running running(c, random);
  if (testing::Test::HasFailure()) return;
  running.Launch();
  if (testing::Test::HasFatalFailure()) return;
  const std::vector<float> out = running.Out(), lse = running.Lse();
  const int dim = c.head_dim, kv_heads = static_cast<int>(c.k_spectral.size());
  for (size_t b = 0; b < c.lengths.size(); ++b) {
    for (int h = 0; h < kv_heads; ++h) {
      const int64_t first = static_cast<int64_t>(b) * running.query_heads() + h * c.group;
      const HeadAttention expected =
          ReferenceAttention(running.k(), running.v(), running.sequence(b), c.dtype, h,
                             1 / std::sqrt(static_cast<double>(dim)), running.q(first, c.group));
      for (int g = 0; g < c.group; ++g) {
        ASSERT_NEAR(lse[first + g], expected.lse[g], 2e-3)
            << "sequence " << b << ", KV head " << h << ", query " << g;
        double largest = 0;
        for (int d = 0; d < dim; ++d) {
          largest = std::max(largest, std::abs(expected.out[g * dim + d]));
        }
        // Weights and sums of 11 bits; 8 of bf16 in what is written.
        const double allowed = largest * (c.float_io ? 2e-3 : 6e-3);
        int wrong = 0;
        for (int d = 0; d < dim; ++d) {
          const double got = out[(first + g) * dim + d];
          if (std::abs(got - expected.out[g * dim + d]) <= allowed) continue;
          if (++wrong > 8) break;
          ADD_FAILURE() << "sequence " << b << ", KV head " << h << ", query " << g << ", channel "
                        << d << ": " << got << " instead of " << expected.out[g * dim + d]
                        << "; largest " << largest;
        }
        if (wrong > 0) return;
      }
    }
  }
}

TEST_F(SequenceAttention, IsAttentionToWhatPayloadsDecodeTo) {
  // Few frequencies, so that the reference decoder is quick enough.
  Case c;
  c.head_dim = 64;
  c.group = 3;
  c.scope = {.sink_tokens = 3, .recent_tokens = 70, .frequencies = 16, .peak_rescale = true};
  c.k_spectral = {40, 64, 0};
  c.v_spectral = {33, 0, 64};
  c.lengths = {{555, 700}, {73 + 32, 2000}, {301, 301}};
  Running running(c, random_);
  if (HasFailure()) return;
  running.Launch();
  if (HasFatalFailure()) return;
  const std::vector<float> out = running.Out(), lse = running.Lse();
  for (size_t b = 0; b < c.lengths.size(); ++b) {
    const int64_t tokens = c.lengths[b].tokens;
    const auto k = reference::DecodeSequence(running.k(), c.dtype, running.sequence(b).k);
    const auto v = reference::DecodeSequence(running.v(), c.dtype, running.sequence(b).v);
    for (int head = 0; head < running.query_heads(); ++head) {
      const int64_t row = static_cast<int64_t>(b) * running.query_heads() + head;
      const double* keys = k.data() + (head / c.group) * tokens * c.head_dim;
      const double* values = v.data() + (head / c.group) * tokens * c.head_dim;
      double sum = 0;
      std::vector<double> expected(c.head_dim, 0.0);
      for (int64_t t = 0; t < tokens; ++t) {
        double score = 0;
        for (int d = 0; d < c.head_dim; ++d) {
          score += running.q(row, 1)[d] * keys[t * c.head_dim + d];
        }
        const double weight = std::exp(score / std::sqrt(c.head_dim));
        sum += weight;
        for (int d = 0; d < c.head_dim; ++d) expected[d] += weight * values[t * c.head_dim + d];
      }
      ASSERT_NEAR(lse[row], std::log(sum), 2e-3) << "sequence " << b << ", head " << head;
      for (int d = 0; d < c.head_dim; ++d) {
        ASSERT_NEAR(out[row * c.head_dim + d], expected[d] / sum, 4e-3)
            << "sequence " << b << ", head " << head << ", channel " << d;
      }
    }
  }
}

TEST_F(SequenceAttention, AgreesForEveryHeadDimAndGroup) {
  for (const int head_dim : {64, 96, 128, 256}) {
    for (const int group : {1, 2, 4, 5, 8, 11, 16}) {
      Case c;
      c.head_dim = head_dim;
      c.group = group;
      c.scope = {.sink_tokens = Random(1, 9),
                 .recent_tokens = Random(1, 200),
                 .frequencies = 8 * Random(8, 16),
                 .peak_rescale = Random(0, 1) == 1};
      c.coefficient_bits = Random(0, 1) == 1 ? 16 : 32;
      c.dtype = Random(0, 1) == 1 ? KvDtype::kBf16 : KvDtype::kFp16;
      c.float_io = Random(0, 1) == 1;
      c.k_spectral = {0, head_dim, Random(1, head_dim - 1)};
      c.v_spectral = {Random(0, head_dim), Random(1, head_dim - 1), Random(0, 1) * head_dim};
      for (int b = 0; b < 3; ++b) {
        const int64_t tokens = Random(1, 1500);
        c.lengths.push_back({tokens, tokens + Random(0, 1000)});
      }
      CheckCase(c, random_);
      if (HasFailure()) return;
    }
  }
}

TEST_F(SequenceAttention, AgreesForEveryKindOfWindow) {
  // From windows whose nodes are their tokens to those of 256 tokens.
  for (const int64_t period : {1025, 3001, 5003, 9001, 17011, 32777, 66013}) {
    Case c;
    c.k_spectral = {Random(90, 128)};
    c.v_spectral = {Random(90, 128)};
    c.lengths = {{1024 + period, 1024 + period},
                 {2049 + Random(0, 200), 1024 + period + Random(1200, 1300)}};
    CheckCase(c, random_);
    if (HasFailure()) return;
  }
}

TEST_F(SequenceAttention, TakesSequencesOfVeryDifferentLengths) {
  Case c;
  c.k_spectral = {101, 128};
  c.v_spectral = {128, 3};
  c.lengths = {{1, 40000},    {2048, 2300}, {2049, 40000},
               {9999, 10000}, {1024, 4000}, {20001, 20001}};
  CheckCase(c, random_);
}

TEST_F(SequenceAttention, GivesNothingForSequencesWithoutTokens) {
  Case c;
  c.k_spectral = c.v_spectral = {100};
  c.lengths = {{5, 10}};
  Running running(c, random_);
  const kernels::SequenceRef empty = {};
  ASSERT_EQ(cudaMemcpy(const_cast<kernels::SequenceRef*>(running.params().sequences), &empty,
                       sizeof empty, cudaMemcpyHostToDevice),
            cudaSuccess);
  running.Launch();
  for (const float x : running.Out()) ASSERT_EQ(x, 0);
  for (const float x : running.Lse()) ASSERT_EQ(x, -INFINITY);
}

TEST_F(SequenceAttention, IsTheSameInEveryRunAndInGraphs) {
  Case c;
  c.k_spectral = {97, 110};
  c.v_spectral = {60, 128};
  c.lengths = {{5001, 6000}, {3000, 3000}};
  Running running(c, random_);
  running.Launch();
  const std::vector<float> out = running.Out(), lse = running.Lse();
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
  ASSERT_EQ(kernels::LaunchSequenceAttention(running.params(), stream), cudaSuccess);
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&replay, graph, 0), cudaSuccess);
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(cudaMemset(running.params().out, 0xff, out.size() * 4), cudaSuccess);
    ASSERT_EQ(cudaGraphLaunch(replay, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    EXPECT_EQ(running.Out(), out);
    EXPECT_EQ(running.Lse(), lse);
  }
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_F(SequenceAttention, RefusesWhatItCannotRun) {
  Case c;
  c.k_spectral = c.v_spectral = {100};
  c.lengths = {{3000, 3000}};
  Running running(c, random_);
  const kernels::SequenceAttentionParams good = running.params();
  const auto refused = [&](auto change) {
    kernels::SequenceAttentionParams params = good;
    change(params);
    return kernels::LaunchSequenceAttention(params, nullptr) == cudaErrorInvalidValue;
  };
  using Params = kernels::SequenceAttentionParams;
  EXPECT_TRUE(refused([](Params& p) { p.batch = 0; }));
  EXPECT_TRUE(refused([](Params& p) { p.batch = 65536; }));
  EXPECT_TRUE(refused([](Params& p) { p.kv_heads = 0; }));
  EXPECT_TRUE(refused([](Params& p) { p.query_heads = 17; }));
  EXPECT_TRUE(refused([](Params& p) { p.query_heads = 0; }));
  EXPECT_TRUE(refused([](Params& p) { p.head_dim = 80; }));
  EXPECT_TRUE(refused([](Params& p) { p.frequencies = 1024; }));
  EXPECT_TRUE(refused([](Params& p) { p.frequencies = 12; }));
  EXPECT_TRUE(refused([](Params& p) { p.coefficient_bits = 8; }));
  EXPECT_TRUE(refused([](Params& p) { p.dtype = static_cast<kernels::ElementType>(0); }));
  EXPECT_TRUE(refused([](Params& p) { p.max_middle_tokens = -1; }));
  EXPECT_TRUE(refused([](Params& p) { p.max_middle_tokens = (1 << 20) + 1; }));
  EXPECT_TRUE(refused([](Params& p) { p.max_exact_tokens = -1; }));
  EXPECT_TRUE(refused([](Params& p) { p.max_nodes = 0; }));
  EXPECT_TRUE(refused([](Params& p) { p.max_nodes += 1; }));
  EXPECT_TRUE(refused([](Params& p) { p.q = nullptr; }));
  EXPECT_TRUE(refused([](Params& p) { p.out = nullptr; }));
  EXPECT_TRUE(refused([](Params& p) { p.k.ids = nullptr; }));
  EXPECT_TRUE(refused([](Params& p) { p.v.spectral = nullptr; }));
  EXPECT_TRUE(refused([](Params& p) { p.sequences = nullptr; }));
  EXPECT_TRUE(refused([](Params& p) { p.sides = nullptr; }));
  EXPECT_TRUE(refused([](Params& p) { p.workspace = nullptr; }));
  EXPECT_TRUE(refused([](Params& p) { p.workspace = static_cast<char*>(p.workspace) + 16; }));
  EXPECT_TRUE(refused([](Params& p) { --p.workspace_bytes; }));
  Params bad = good;
  bad.head_dim = 80;
  EXPECT_LT(kernels::SequenceAttentionWorkspace(bad), 0);
  Params without_lse = good;
  without_lse.lse = nullptr;
  EXPECT_EQ(kernels::LaunchSequenceAttention(without_lse, nullptr), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
}  // namespace fourierkv
