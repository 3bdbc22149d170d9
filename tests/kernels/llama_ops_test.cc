// The small operations of a Llama model on a GPU against what they are on the CPU.

#include "kernels/llama_ops.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "compute/backend/cuda/device_buffer.h"
#include "compute/base/bfloat16.h"
#include "compute/model/dense_ops.h"
#include "compute/model/rope.h"

namespace fourierkv {
namespace {

template <typename T>
DeviceBuffer ToDevice(const std::vector<T>& host) {
  auto buffer = DeviceBuffer::CopyOf(host.data(), host.size() * sizeof(T));
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return *std::move(buffer);
}

template <typename T>
std::vector<T> ToHost(const DeviceBuffer& buffer) {
  std::vector<T> host(buffer.size() / sizeof(T));
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  const absl::Status status = buffer.CopyTo(host.data(), buffer.size());
  EXPECT_TRUE(status.ok()) << status;
  return host;
}

// Device memory for `n` values, each byte of it 0xff.
template <typename T>
DeviceBuffer Blank(size_t n) {
  return ToDevice(std::vector<uint8_t>(n * sizeof(T), 0xff));
}

class LlamaOps : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: the kernels were not run";
    }
  }

  std::vector<float> Floats(size_t n, float deviation = 1) {
    std::normal_distribution<float> normal(0, deviation);
    std::vector<float> values(n);
    for (float& value : values) value = normal(random_);
    return values;
  }
  std::vector<uint16_t> Bf16(size_t n, float deviation = 1) {
    std::vector<uint16_t> values;
    for (float value : Floats(n, deviation)) values.push_back(FloatToBf16(value));
    return values;
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 random_{seed_};
};

// Within one unit in the last place of bf16 of `expected`, and of what float sums may be off.
void ExpectBf16Near(uint16_t got, double expected, double slack = 1e-6) {
  ASSERT_NEAR(Bf16ToFloat(got), expected, std::fabs(expected) / 128 + slack);
}

TEST_F(LlamaOps, EmbeddingsAreRowsOfTheTable) {
  constexpr int kVocab = 37, kHidden = 264;
  const std::vector<uint16_t> table = Bf16(kVocab * kHidden);
  const std::vector<int32_t> tokens = {36, 0, 5, 5, 17};
  const DeviceBuffer d_table = ToDevice(table), d_tokens = ToDevice(tokens);
  const DeviceBuffer x = Blank<float>(tokens.size() * kHidden);
  ASSERT_EQ(kernels::LaunchEmbedTokens(d_table.as<uint16_t>(), d_tokens.as<int32_t>(),
                                       tokens.size(), kHidden, x.as<float>(), nullptr),
            cudaSuccess);
  const std::vector<float> got = ToHost<float>(x);
  for (size_t i = 0; i < tokens.size(); ++i) {
    for (int d = 0; d < kHidden; ++d) {
      ASSERT_EQ(got[i * kHidden + d], Bf16ToFloat(table[tokens[i] * kHidden + d])) << i << " " << d;
    }
  }
}

TEST_F(LlamaOps, RmsNormIsTheCpus) {
  ThreadPool pool(1);
  for (const int size : {8, 256, 264, 4096, 5000}) {
    constexpr int kRows = 5;
    std::vector<float> x = Floats(kRows * size, 3);
    std::fill_n(x.begin() + size, size, 0.0f);  // one row of zeros: only eps is left
    const std::vector<float> weight = Floats(size);
    std::vector<float> expected(x.size());
    RmsNorm(pool, x.data(), kRows, size, weight.data(), 1e-5, expected.data());
    const DeviceBuffer d_x = ToDevice(x), d_weight = ToDevice(weight);
    const DeviceBuffer y = Blank<uint16_t>(x.size());
    ASSERT_EQ(kernels::LaunchRmsNorm(d_x.as<float>(), d_weight.as<float>(), 1e-5f, kRows, size,
                                     y.as<uint16_t>(), nullptr),
              cudaSuccess);
    const std::vector<uint16_t> got = ToHost<uint16_t>(y);
    for (size_t i = 0; i < x.size(); ++i) {
      SCOPED_TRACE(testing::Message() << "size " << size << ", element " << i);
      ExpectBf16Near(got[i], expected[i]);
    }
  }
}

ModelConfig Llama3Config() {
  ModelConfig config;
  config.head_dim = 128;
  config.rope_theta = 500000;
  config.llama3_rope = true;
  config.rope_scaling.factor = 8;
  return config;
}

TEST_F(LlamaOps, AnglesAreTheCpusAtEveryPosition) {
  const Rope rope(Llama3Config());
  std::vector<int32_t> positions = {0, 1, 8191, 131071, 1 << 20};
  for (int i = 0; i < 32; ++i) positions.push_back(static_cast<int32_t>(random_() % 131072));
  const int rows = static_cast<int>(positions.size());
  const int pairs = static_cast<int>(rope.frequencies().size());
  const DeviceBuffer d_positions = ToDevice(positions), frequencies = ToDevice(rope.frequencies());
  const DeviceBuffer table = Blank<float>(rows * 2 * pairs);
  ASSERT_EQ(kernels::LaunchRopeTable(d_positions.as<int32_t>(), frequencies.as<double>(), rows,
                                     pairs, table.as<float>(), nullptr),
            cudaSuccess);
  const std::vector<float> got = ToHost<float>(table);
  for (int i = 0; i < rows; ++i) {
    const Rope::Table expected = rope.MakeTable(positions[i], 1);
    for (int d = 0; d < pairs; ++d) {
      ASSERT_NEAR(got[i * 2 * pairs + d], expected.cos[d], 1e-7) << positions[i] << " " << d;
      ASSERT_NEAR(got[(i * 2 + 1) * pairs + d], expected.sin[d], 1e-7) << positions[i] << " " << d;
    }
  }
}

TEST_F(LlamaOps, NewTokensAreRotatedAndStandInTheirPages) {
  constexpr int kQueryHeads = 6, kKvHeads = 2, kHeads = kQueryHeads + 2 * kKvHeads;
  for (const int head_dim : {8, 64, 96, 128, 256}) {
    // Rows 0 to 2 follow each other across a border between pages; row 3 is of another sequence.
    const std::vector<int32_t> positions = {126, 127, 128, 70000}, row_pages = {1, 1, 2, 0};
    const int rows = 4, half = head_dim / 2, pages = 3;
    ModelConfig config = Llama3Config();
    config.head_dim = head_dim;
    const Rope rope(config);
    std::vector<float> table;
    for (int position : positions) {
      const Rope::Table row = rope.MakeTable(position, 1);
      table.insert(table.end(), row.cos.begin(), row.cos.end());
      table.insert(table.end(), row.sin.begin(), row.sin.end());
    }
    const std::vector<float> qkv = Floats(rows * kHeads * head_dim);
    const int64_t head_stride = 2 * kernels::kPageTokens * head_dim;  // wider than a page
    const DeviceBuffer d_qkv = ToDevice(qkv), d_table = ToDevice(table);
    const DeviceBuffer d_positions = ToDevice(positions), d_row_pages = ToDevice(row_pages);
    const DeviceBuffer k = Blank<uint16_t>(pages * kKvHeads * head_stride);
    const DeviceBuffer v = Blank<uint16_t>(pages * kKvHeads * head_stride);
    std::vector<kernels::PageRef> refs;
    for (int p = 0; p < pages; ++p) {
      refs.push_back({k.as<uint16_t>() + p * kKvHeads * head_stride,
                      v.as<uint16_t>() + p * kKvHeads * head_stride, p == 1 ? 62 : 1, 0});
    }
    const DeviceBuffer d_refs = ToDevice(refs);
    const DeviceBuffer q = Blank<uint16_t>(rows * kQueryHeads * head_dim);
    kernels::RopeAppendParams params = {};
    params.rows = rows;
    params.query_heads = kQueryHeads;
    params.kv_heads = kKvHeads;
    params.head_dim = head_dim;
    params.qkv = d_qkv.as<float>();
    params.rope = d_table.as<float>();
    params.positions = d_positions.as<int32_t>();
    params.row_pages = d_row_pages.as<int32_t>();
    params.pages = d_refs.as<kernels::PageRef>();
    params.page_head_stride = head_stride;
    params.q = q.as<uint16_t>();
    ASSERT_EQ(kernels::LaunchRopeAppend(params, nullptr), cudaSuccess);

    const auto got_refs = ToHost<kernels::PageRef>(d_refs);
    EXPECT_EQ(got_refs[0].tokens, 70000 % 64 + 1);
    EXPECT_EQ(got_refs[1].tokens, 64);
    EXPECT_EQ(got_refs[2].tokens, 1);
    const auto got_q = ToHost<uint16_t>(q), got_k = ToHost<uint16_t>(k),
               got_v = ToHost<uint16_t>(v);
    size_t written = 0;
    for (int row = 0; row < rows; ++row) {
      std::vector<float> expected(qkv.begin() + row * kHeads * head_dim,
                                  qkv.begin() + (row + 1) * kHeads * head_dim);
      Rope::Rotate(kQueryHeads + kKvHeads, head_dim, table.data() + row * head_dim,
                   table.data() + row * head_dim + half, expected.data());
      for (int head = 0; head < kHeads; ++head) {
        for (int d = 0; d < head_dim; ++d) {
          SCOPED_TRACE(testing::Message() << "row " << row << " head " << head << " " << d);
          const int kv = (head - kQueryHeads) % kKvHeads;
          const int64_t in_page = (row_pages[row] * kKvHeads + kv) * head_stride +
                                  positions[row] % kernels::kPageTokens * head_dim + d;
          const uint16_t got = head < kQueryHeads ? got_q[(row * kQueryHeads + head) * head_dim + d]
                               : head < kQueryHeads + kKvHeads ? got_k[in_page]
                                                               : got_v[in_page];
          ExpectBf16Near(got, expected[head * head_dim + d]);
          if (head >= kQueryHeads + kKvHeads) {
            ASSERT_EQ(got, FloatToBf16(expected[head * head_dim + d]));
          }
          written += head >= kQueryHeads ? 1 : 0;
        }
      }
    }
    const auto untouched = [](const std::vector<uint16_t>& values) {
      return std::count(values.begin(), values.end(), 0xffff);
    };
    EXPECT_EQ(untouched(got_k) + untouched(got_v), got_k.size() + got_v.size() - written);
  }
}

TEST_F(LlamaOps, SiluMulIsTheCpus) {
  ThreadPool pool(1);
  for (const int size : {8, 704, 14336}) {
    constexpr int kRows = 3;
    const std::vector<uint16_t> gate_up = Bf16(kRows * 2 * size, 4);
    const DeviceBuffer d_gate_up = ToDevice(gate_up), out = Blank<uint16_t>(kRows * size);
    ASSERT_EQ(
        kernels::LaunchSiluMul(d_gate_up.as<uint16_t>(), kRows, size, out.as<uint16_t>(), nullptr),
        cudaSuccess);
    const std::vector<uint16_t> got = ToHost<uint16_t>(out);
    for (int row = 0; row < kRows; ++row) {
      std::vector<float> gate(size), up(size);
      for (int i = 0; i < size; ++i) {
        gate[i] = Bf16ToFloat(gate_up[row * 2 * size + i]);
        up[i] = Bf16ToFloat(gate_up[(row * 2 + 1) * size + i]);
      }
      SiluMul(pool, 1, size, up.data(), gate.data());
      for (int i = 0; i < size; ++i) {
        SCOPED_TRACE(testing::Message() << "size " << size << " row " << row << " " << i);
        ExpectBf16Near(got[row * size + i], gate[i]);
      }
    }
  }
}

TEST_F(LlamaOps, TheLikeliestTokenIsChosenWithItsProbability) {
  for (const int vocab : {1, 31, 264, 1025, 128256}) {
    constexpr int kRows = 6;
    std::vector<float> logits = Floats(kRows * vocab, 5);
    float* const tie = logits.data() + vocab;
    std::fill_n(tie, vocab, -3.0f);  // all equal
    logits[2 * vocab + vocab / 2] = std::numeric_limits<float>::quiet_NaN();
    logits[3 * vocab + vocab - 1] = std::numeric_limits<float>::infinity();
    logits[4 * vocab] = -std::numeric_limits<float>::infinity();
    for (int i = 0; i < vocab; ++i) logits[5 * vocab + i] += 1e5f;
    const DeviceBuffer d_logits = ToDevice(logits), choices = Blank<kernels::TokenChoice>(kRows);
    ASSERT_EQ(kernels::LaunchChooseTokens(d_logits.as<float>(), kRows, vocab,
                                          choices.as<kernels::TokenChoice>(), nullptr),
              cudaSuccess);
    const auto got = ToHost<kernels::TokenChoice>(choices);
    for (int row : {0, 1, 5}) {
      const float* l = logits.data() + row * vocab;
      const int best = static_cast<int>(std::max_element(l, l + vocab) - l);
      double sum = 0;
      for (int i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(l[i]) - l[best]);
      EXPECT_EQ(got[row].token, best) << "vocab " << vocab << ", row " << row;
      EXPECT_NEAR(got[row].log_probability, -std::log(sum), 1e-4) << vocab << " " << row;
    }
    for (int row : {2, 3, 4}) EXPECT_EQ(got[row].token, -1) << vocab << " " << row;
  }
}

TEST_F(LlamaOps, LaunchersRefuseWhatTheyCannotRun) {
  const DeviceBuffer memory = Blank<float>(1024);
  auto* const f = memory.as<float>();
  auto* const h = memory.as<uint16_t>();
  auto* const i = memory.as<int32_t>();
  EXPECT_EQ(kernels::LaunchEmbedTokens(nullptr, i, 1, 8, f, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(kernels::LaunchEmbedTokens(h, i, 1, 12, f, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(kernels::LaunchEmbedTokens(h, i, 0, 8, f, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(kernels::LaunchRmsNorm(f + 1, f, 1e-5f, 1, 8, h, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(kernels::LaunchRmsNorm(f, f, 1e-5f, 1, 20, h, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(kernels::LaunchRopeTable(i, nullptr, 1, 8, f, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(kernels::LaunchRopeAppend({}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(kernels::LaunchSiluMul(h, -1, 8, h, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(kernels::LaunchChooseTokens(f, 1, 0, memory.as<kernels::TokenChoice>(), nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
}  // namespace fourierkv
