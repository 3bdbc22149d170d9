// Attention on compact segments and exact pages against float64 over what they decode to. Needs a
// GPU; says so and skips without one.

#include "kernels/fourier_attention.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "compute/backend/cuda/device_buffer.h"
#include "compute/backend/cuda/device_layout.h"
#include "compute/base/bfloat16.h"
#include "compute/codec/reference_codec.h"
#include "tests/compute/backend/backend_test_util.h"

namespace fourierkv {
namespace {

template <typename T>
DeviceBuffer OnDevice(const std::vector<T>& host) {
  absl::StatusOr<DeviceBuffer> buffer = DeviceBuffer::CopyOf(host.data(), host.size() * sizeof(T));
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return buffer.ok() ? *std::move(buffer) : DeviceBuffer();
}

// What one sequence of a batch has.
struct Tokens {
  int segments = 0;
  std::vector<int> pages;  // tokens of each
};

// Caches of a batch of sequences that share a profile, on the device, and what they mean.
class Batch {
 public:
  // Keys are multiplied by `key_magnitude`, which queries should be divided by.
  Batch(const CodecCase& test, const std::vector<Tokens>& sequences, std::mt19937_64& random,
        float key_magnitude = 1)
      : test_(test), key_magnitude_(key_magnitude), layout_(RandomLayout(test, random)) {
    std::vector<uint8_t> plan;
    const HostPart k(layout_->part(0, Part::kK));
    const HostPart v(layout_->part(0, Part::kV));
    EXPECT_EQ(kernels::BuildAttentionPlan(k.view(), v.view(), &plan, &plan_), "");
    plan_buffer_ = OnDevice(plan);
    plan_.data = plan_buffer_.as<uint8_t>();
    std::vector<kernels::SegmentRef> segments;
    std::vector<kernels::PageRef> pages;
    std::vector<int32_t> segment_offsets = {0}, page_offsets = {0};
    for (const Tokens& tokens : sequences) {
      dense_.emplace_back(2 * test.kv_heads);
      for (int s = 0; s < tokens.segments; ++s) segments.push_back(AddSegment(random));
      for (const int n : tokens.pages) pages.push_back(AddPage(n, random));
      segment_offsets.push_back(static_cast<int32_t>(segments.size()));
      page_offsets.push_back(static_cast<int32_t>(pages.size()));
    }
    segments_ = OnDevice(segments);
    pages_ = OnDevice(pages);
    segment_offsets_ = OnDevice(segment_offsets);
    page_offsets_ = OnDevice(page_offsets);
  }

  int size() const { return static_cast<int>(dense_.size()); }
  const kernels::AttentionPlanView& plan() const { return plan_; }

  // One schedule at a time.
  kernels::FourierAttentionParams Params(int query_heads) {
    kernels::FourierAttentionParams params = {};
    params.plan = plan_;
    params.batch = size();
    params.query_heads = query_heads;
    params.dtype =
        test_.dtype == KvDtype::kBf16 ? kernels::ElementType::kBf16 : kernels::ElementType::kFp16;
    params.float_io = true;
    params.scale = 1.0f / std::sqrt(static_cast<float>(test_.head_dim));
    params.segments = segments_.as<const kernels::SegmentRef>();
    params.pages = pages_.as<const kernels::PageRef>();
    params.page_head_stride = kernels::kPageTokens * test_.head_dim;
    EXPECT_EQ(kernels::FourierAttentionShape(plan_, size(), query_heads, params.dtype,
                                             &params.schedule.shape),
              cudaSuccess);
    params.schedule.bytes = kernels::AttentionScheduleBytes(params.schedule.shape);
    EXPECT_GT(params.schedule.bytes, 0);
    schedule_ = OnDevice(std::vector<std::byte>(params.schedule.bytes));
    params.schedule.data = schedule_.data();
    EXPECT_EQ(Schedule(params, nullptr), cudaSuccess);
    return params;
  }

  // Enqueues the making of the schedule that Params gave.
  cudaError_t Schedule(const kernels::FourierAttentionParams& params, cudaStream_t stream) const {
    return kernels::LaunchAttentionSchedule(params.schedule, segment_offsets_.as<const int32_t>(),
                                            page_offsets_.as<const int32_t>(), stream);
  }

  // From now on the sequences have other numbers of segments, of the same tables; whole pages are
  // left out of this.
  void Redistribute(const std::vector<int>& segments) {
    std::vector<int32_t> offsets = {0};
    std::vector<std::vector<double>> all(2 * test_.kv_heads);  // of the table, one after the other
    for (const auto& sequence : dense_) {
      for (size_t h = 0; h < all.size(); ++h) {
        all[h].insert(all[h].end(), sequence[h].begin(), sequence[h].end());
      }
    }
    const int64_t size = static_cast<int64_t>(test_.segment_tokens) * test_.head_dim;
    for (size_t b = 0; b < segments.size(); ++b) {
      const int32_t end = offsets.back() + segments[b];
      for (size_t h = 0; h < all.size(); ++h) {
        dense_[b][h].assign(all[h].begin() + offsets.back() * size, all[h].begin() + end * size);
      }
      offsets.push_back(end);
    }
    ASSERT_TRUE(segment_offsets_.CopyFrom(offsets.data(), offsets.size() * sizeof(int32_t)).ok());
  }

  // Float64 attention of one query head of a sequence; q: [head_dim].
  void Attend(int sequence, int kv_head, const std::vector<double>& q, std::vector<double>* out,
              double* lse) const {
    const auto& k = dense_[sequence][kv_head];
    const auto& v = dense_[sequence][test_.kv_heads + kv_head];
    out->resize(test_.head_dim);
    std::vector<double> logs(1);
    reference::Attend(q, k, v, 1, static_cast<int64_t>(k.size()) / test_.head_dim, test_.head_dim,
                      1.0f / std::sqrt(static_cast<float>(test_.head_dim)), *out, logs);
    *lse = logs[0];
  }

 private:
  void Append(Part part, int tokens, const std::vector<double>& values) {
    const size_t size = static_cast<size_t>(tokens) * test_.head_dim;
    for (int h = 0; h < test_.kv_heads; ++h) {
      std::vector<double>& to = dense_.back()[(part == Part::kK ? 0 : test_.kv_heads) + h];
      to.insert(to.end(), values.begin() + h * size, values.begin() + (h + 1) * size);
    }
  }

  kernels::SegmentRef AddSegment(std::mt19937_64& random) {
    const uint8_t* payloads[2];
    for (const Part part : kParts) {
      const PartLayout& layout = layout_->part(0, part);
      auto dense =
          RandomKv(test_.kv_heads, test_.segment_tokens, test_.head_dim, test_.dtype, random);
      if (part == Part::kK && key_magnitude_ != 1) {
        for (uint16_t& x : dense) {
          x = FloatToKv(KvToFloat(x, test_.dtype) * key_magnitude_, test_.dtype);
        }
      }
      std::vector<std::byte> payload(layout.payload_bytes);
      reference::EncodePart(layout, test_.dtype, dense, payload);
      Append(part, test_.segment_tokens, reference::DecodePart(layout, payload));
      memory_.push_back(OnDevice(payload));
      payloads[static_cast<int>(part)] = memory_.back().as<const uint8_t>();
    }
    return {payloads[0], payloads[1]};
  }

  kernels::PageRef AddPage(int tokens, std::mt19937_64& random) {
    const uint16_t* parts[2];
    for (const Part part : kParts) {
      const auto dense = RandomKv(test_.kv_heads, tokens, test_.head_dim, test_.dtype, random);
      // What is behind a page's tokens is not looked at: NaN.
      std::vector<uint16_t> page(
          static_cast<size_t>(test_.kv_heads) * kernels::kPageTokens * test_.head_dim, 0x7fff);
      std::vector<double> values(dense.size());
      const size_t size = static_cast<size_t>(tokens) * test_.head_dim;
      for (size_t i = 0; i < dense.size(); ++i) values[i] = KvToFloat(dense[i], test_.dtype);
      for (int h = 0; h < test_.kv_heads; ++h) {
        std::copy_n(dense.begin() + h * size, size,
                    page.begin() + static_cast<size_t>(h) * kernels::kPageTokens * test_.head_dim);
      }
      Append(part, tokens, values);
      memory_.push_back(OnDevice(page));
      parts[static_cast<int>(part)] = memory_.back().as<const uint16_t>();
    }
    return {parts[0], parts[1], tokens, 0};
  }

  const CodecCase test_;
  const float key_magnitude_;
  const std::unique_ptr<ProfileLayout> layout_;
  kernels::AttentionPlanView plan_ = {};
  DeviceBuffer plan_buffer_;
  std::vector<DeviceBuffer> memory_;
  DeviceBuffer segments_, pages_, segment_offsets_, page_offsets_, schedule_;
  // [sequence][K heads, V heads]: [tokens][head_dim]
  std::vector<std::vector<std::vector<double>>> dense_;
};

class FourierAttention : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: the kernels were not run";
    }
  }

  static DeviceBuffer Workspace(const Batch& batch, int query_heads) {
    const int64_t bytes =
        kernels::FourierAttentionWorkspace(batch.plan(), batch.size(), query_heads);
    EXPECT_GT(bytes, 0);
    return OnDevice(std::vector<std::byte>(bytes));
  }

  // Runs twice, which must give the same bits, and compares with float64.
  void Check(const CodecCase& test, int group, const std::vector<Tokens>& sequences,
             bool float_io = true) {
    SCOPED_TRACE(testing::Message() << test.Name() << ", G " << group);
    Batch batch(test, sequences, random_, key_magnitude_);
    const int query_heads = group * test.kv_heads;
    const int64_t count = static_cast<int64_t>(batch.size()) * query_heads * test.head_dim;
    std::vector<float> q = RandomQueries(count, 1 / key_magnitude_, random_);
    std::vector<uint16_t> narrow(count);
    for (int64_t i = 0; i < count; ++i) {
      if (float_io) continue;
      narrow[i] = FloatToKv(q[i], test.dtype);
      q[i] = KvToFloat(narrow[i], test.dtype);
    }
    const DeviceBuffer q_buffer = float_io ? OnDevice(q) : OnDevice(narrow);
    DeviceBuffer own;
    if (workspace_.size() == 0) own = Workspace(batch, query_heads);
    const DeviceBuffer& workspace = workspace_.size() == 0 ? own : workspace_;
    kernels::FourierAttentionParams params = batch.Params(query_heads);
    params.float_io = float_io;
    params.q = q_buffer.data();
    params.workspace = workspace.data();
    params.workspace_bytes = static_cast<int64_t>(workspace.size());
    std::vector<float> out[2], lse[2];
    for (int run = 0; run < 2; ++run) {
      const std::vector<float> nothing(count, NAN);
      const DeviceBuffer out_buffer = OnDevice(nothing);
      const DeviceBuffer lse_buffer =
          OnDevice(std::vector<float>(static_cast<size_t>(batch.size()) * query_heads, NAN));
      params.out = out_buffer.data();
      params.lse = lse_buffer.as<float>();
      ASSERT_EQ(kernels::LaunchFourierAttention(params, nullptr), cudaSuccess);
      ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess) << cudaGetErrorString(cudaGetLastError());
      out[run].resize(count);
      lse[run].resize(lse_buffer.size() / sizeof(float));
      if (float_io) {
        ASSERT_TRUE(out_buffer.CopyTo(out[run].data(), count * sizeof(float)).ok());
      } else {
        ASSERT_TRUE(out_buffer.CopyTo(narrow.data(), count * sizeof(uint16_t)).ok());
        for (int64_t i = 0; i < count; ++i) out[run][i] = KvToFloat(narrow[i], test.dtype);
      }
      ASSERT_TRUE(lse_buffer.CopyTo(lse[run].data(), lse_buffer.size()).ok());
    }
    EXPECT_EQ(out[0], out[1]);
    EXPECT_EQ(lse[0], lse[1]);
    Compare(batch, test, group, q, out[0], lse[0], float_io);
  }

  void Compare(const Batch& batch, const CodecCase& test, int group, const std::vector<float>& q,
               const std::vector<float>& out, const std::vector<float>& lse, bool float_io) {
    const int d = test.head_dim;
    const int query_heads = group * test.kv_heads;
    double worst = 0, worst_lse = 0;
    for (int b = 0; b < batch.size(); ++b) {
      for (int h = 0; h < query_heads; ++h) {
        const int64_t row = static_cast<int64_t>(b) * query_heads + h;
        const std::vector<double> query(q.begin() + row * d, q.begin() + (row + 1) * d);
        std::vector<double> want;
        double want_lse;
        batch.Attend(b, h / group, query, &want, &want_lse);
        if (std::isinf(want_lse)) {
          EXPECT_EQ(lse[row], -std::numeric_limits<float>::infinity());
          for (int i = 0; i < d; ++i) ASSERT_EQ(out[row * d + i], 0);
          continue;
        }
        double error = 0, size = 0;
        for (int i = 0; i < d; ++i) {
          error += std::pow(out[row * d + i] - want[i], 2);
          size += want[i] * want[i];
        }
        const double relative = std::sqrt(error / size);
        const double lse_error = std::abs(lse[row] - want_lse) / std::max(1.0, std::abs(want_lse));
        worst = std::max(worst, std::isnan(relative) ? 1e9 : relative);
        worst_lse = std::max(worst_lse, std::isnan(lse_error) ? 1e9 : lse_error);
        if (!(relative < tolerance(float_io)) && ++reported_ < 12) {
          ADD_FAILURE() << "sequence " << b << ", head " << h << ": relative error " << relative
                        << ", lse " << lse[row] << " for " << want_lse << "; out " << out[row * d]
                        << " " << out[row * d + 1] << " " << out[row * d + 2] << " for " << want[0]
                        << " " << want[1] << " " << want[2];
        }
      }
    }
    EXPECT_LT(worst_lse, 1e-2);
    RecordProperty("worst_relative_error", std::to_string(worst));
    worst_ = std::max(worst_, worst);
  }

  // Operands are rounded to 11 bits; bf16 results to 8.
  static double tolerance(bool float_io) { return float_io ? 6e-3 : 8e-3; }

  void TearDown() override {
    if (worst_ > 0) std::printf("worst relative error %.2e\n", worst_);
  }

  const uint64_t seed_ = FreshSeed();
  std::mt19937_64 random_{seed_};
  testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
  double worst_ = 0;
  int reported_ = 0;
  float key_magnitude_ = 1;
  DeviceBuffer workspace_;  // of all checks; empty: each has its own
};

// The forms that need no looking up (attention_uniform.cuh), beside those of CodecCases().
std::vector<CodecCase> UniformCases() {
  constexpr auto kDct = BasisKind::kDct2;
  constexpr auto kDft = BasisKind::kDft;
  constexpr auto kBf16 = KvDtype::kBf16;
  return {
      {128, 2, 256, kDct, {8}, {8}, kBf16},
      {64, 2, 256, kDft, {8}, {4}, kBf16},
      {96, 3, 256, kDft, {5}, {8}, kBf16},
      {256, 1, 256, kDct, {7}, {4}, kBf16},
      {40, 2, 256, kDct, {2}, {8}, kBf16},
      {128, 2, 256, kDct, {}, {4}, kBf16},
      {128, 1, 256, kDct, {1}, {}, kBf16},
      {64, 1, 256, BasisKind::kMean, {1}, {4}, kBf16},
      {128, 2, 256, kDct, {8}, {4}, kBf16, {}, true, true},
      {128, 2, 256, kDct, {}, {16}, kBf16, {8}},
      {64, 2, 256, kDft, {}, {16}, KvDtype::kFp16, {5}},
      {128, 1, 256, kDct, {}, {}, kBf16, {3}},
      {104, 2, 256, kDct, {}, {16}, kBf16, {7}, true, true},
      {48, 3, 256, kDct, {}, {16}, kBf16},
  };
}

constexpr int kGroups[] = {4, 1, 8, 2, 16, 3, 7, 9};

TEST_F(FourierAttention, OneSegmentOfEveryForm) {
  int i = 0;
  for (const CodecCase& test : CodecCases()) Check(test, kGroups[i++ % 8], {{1, {}}});
}

TEST_F(FourierAttention, UniformHeads) {
  int i = 0;
  for (const CodecCase& test : UniformCases()) {
    for (const int group : {kGroups[i % 8], kGroups[(i + 2) % 8]}) {
      Check(test, group, {{3, {64, 5}}, {0, {}}, {1, {}}, {9, {1, 64, 17}}, {2, {64}}});
    }
    ++i;
  }
}

TEST_F(FourierAttention, KeysOfAnyMagnitude) {
  for (const float magnitude : {1e-12f, 1e4f, 1e9f}) {
    SCOPED_TRACE(magnitude);
    for (CodecCase test : {UniformCases()[0], UniformCases()[1], CodecCases()[3]}) {
      key_magnitude_ = magnitude;
      Check(test, 4, {{3, {}}, {1, {}}});
      key_magnitude_ = 1;
    }
  }
}

TEST_F(FourierAttention, OnePage) {
  for (const int d : {64, 96, 128, 256, 8, 80}) {
    for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp16}) {
      CodecCase test = CodecCases()[0];
      test.head_dim = d;
      test.dtype = dtype;
      Check(test, 4, {{0, {64}}, {0, {1}}, {0, {63}}});
    }
  }
}

TEST_F(FourierAttention, RaggedBatchesOfEveryForm) {
  int i = 3;
  for (const CodecCase& test : CodecCases()) {
    Check(test, kGroups[i++ % 8],
          {{3, {64, 5}}, {0, {}}, {1, {}}, {9, {1, 64, 64, 64, 17}}, {0, {33}}, {2, {64}}});
  }
}

TEST_F(FourierAttention, NarrowQueriesAndResults) {
  for (const KvDtype dtype : {KvDtype::kBf16, KvDtype::kFp16}) {
    CodecCase test = CodecCases()[0];
    test.dtype = dtype;
    Check(test, 4, {{5, {64, 64}}, {0, {}}, {2, {}}}, /*float_io=*/false);
  }
}

TEST_F(FourierAttention, LongSequencesAreSplitAndManyShareBlocks) {
  CodecCase test = {64, 2, 256, BasisKind::kDct2, {8}, {4}, KvDtype::kBf16};
  Check(test, 4, {{130, {64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64}}});
  std::vector<Tokens> many;
  for (int i = 0; i < 150; ++i) {
    many.push_back({static_cast<int>(random_() % 4),
                    std::vector<int>(random_() % 3, 1 + static_cast<int>(random_() % 64))});
  }
  Check(test, 2, many);
}

// So many parts that they are added up in three rounds, twice with the same counters.
TEST_F(FourierAttention, HundredsOfPartsOfOneHead) {
  CodecCase test = UniformCases()[10];
  test.kv_heads = 1;
  test.head_dim = 16;
  workspace_ = OnDevice(std::vector<std::byte>(64 << 20));
  Check(test, 4, {{700, std::vector<int>(40, 64)}});
  Check(test, 1, {{300, {}}, {0, std::vector<int>(350, 1)}});
}

TEST_F(FourierAttention, OneWorkspaceServesBatchesOfAnySize) {
  const CodecCase test = UniformCases()[1];
  std::vector<Tokens> many(20, Tokens{1, {7}});
  many.push_back({40, {}});
  workspace_ = OnDevice(std::vector<std::byte>(64 << 20));
  for (int round = 0; round < 2; ++round) {
    Check(test, 4, {{150, {64, 64}}});
    Check(test, 4, many);
    Check(test, 1, {{3, {}}, {70, {1}}});
  }
}

TEST_F(FourierAttention, RefusesWhatItCannotRun) {
  const CodecCase test = CodecCases()[0];
  Batch batch(test, {{1, {3}}}, random_);
  const int query_heads = 4 * test.kv_heads;
  const DeviceBuffer workspace = Workspace(batch, query_heads);
  const DeviceBuffer q = OnDevice(std::vector<float>(query_heads * test.head_dim, 1.0f));
  const DeviceBuffer out = OnDevice(std::vector<float>(query_heads * test.head_dim, 7.0f));
  kernels::FourierAttentionParams good = batch.Params(query_heads);
  good.q = q.data();
  good.out = out.data();
  good.workspace = workspace.data();
  good.workspace_bytes = static_cast<int64_t>(workspace.size());
  const auto refused = [&](auto change) {
    kernels::FourierAttentionParams params = good;
    change(params);
    return kernels::LaunchFourierAttention(params, nullptr) == cudaErrorInvalidValue;
  };
  EXPECT_TRUE(refused([](auto& p) { p.q = nullptr; }));
  EXPECT_TRUE(refused([](auto& p) { p.out = nullptr; }));
  EXPECT_TRUE(refused([](auto& p) { p.out = static_cast<char*>(p.out) + 1; }));
  EXPECT_TRUE(refused([](auto& p) { p.batch = 0; }));
  EXPECT_TRUE(refused([](auto& p) { p.batch = 1 << 20; }));
  EXPECT_TRUE(refused([](auto& p) { p.query_heads = 5; }));
  EXPECT_TRUE(refused([](auto& p) { p.query_heads = 17 * p.plan.kv_heads; }));
  EXPECT_TRUE(refused([](auto& p) { p.scale = 0; }));
  EXPECT_TRUE(refused([](auto& p) { p.scale = NAN; }));
  EXPECT_TRUE(refused([](auto& p) { p.dtype = static_cast<kernels::ElementType>(0); }));
  EXPECT_TRUE(refused([](auto& p) { p.q = static_cast<const char*>(p.q) + 4; }));
  EXPECT_TRUE(refused([](auto& p) { p.segments = nullptr, p.pages = nullptr; }));
  EXPECT_TRUE(refused([](auto& p) { p.schedule.data = nullptr; }));
  EXPECT_TRUE(refused([](auto& p) { p.schedule.data = static_cast<char*>(p.schedule.data) + 4; }));
  EXPECT_TRUE(refused([](auto& p) { p.schedule.bytes -= 1; }));
  EXPECT_TRUE(refused([](auto& p) { p.schedule.shape.batch = 2; }));
  EXPECT_TRUE(refused([](auto& p) { p.schedule.shape.query_heads *= 2; }));
  EXPECT_TRUE(refused([](auto& p) { p.schedule.shape.worker_warps = 3; }));
  EXPECT_TRUE(refused([](auto& p) { p.schedule.shape.units_per_segment = 4; }));
  EXPECT_TRUE(refused([](auto& p) { p.schedule.shape.workers = 0; }));
  EXPECT_TRUE(refused([](auto& p) { p.page_head_stride = 4; }));
  EXPECT_TRUE(refused([](auto& p) { p.workspace = nullptr; }));
  EXPECT_TRUE(refused([](auto& p) { p.workspace_bytes -= 1; }));
  EXPECT_TRUE(refused([](auto& p) { p.plan.data = nullptr; }));
  EXPECT_TRUE(refused([](auto& p) { p.plan.head_dim = 257; }));
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  std::vector<float> untouched(query_heads * test.head_dim);
  ASSERT_TRUE(out.CopyTo(untouched.data(), out.size()).ok());
  EXPECT_EQ(untouched, std::vector<float>(query_heads * test.head_dim, 7.0f));
  EXPECT_EQ(kernels::LaunchFourierAttention(good, nullptr), cudaSuccess);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST_F(FourierAttention, RunsAsAGraphWhoseTablesChange) {
  const CodecCase test = UniformCases()[0];
  Batch batch(test, {{30, {}}, {2, {}}, {7, {}}}, random_);
  const int query_heads = 4 * test.kv_heads;
  const int64_t count = static_cast<int64_t>(batch.size()) * query_heads * test.head_dim;
  const DeviceBuffer workspace = Workspace(batch, query_heads);
  DeviceBuffer q = OnDevice(RandomQueries(count, 1, random_));
  const DeviceBuffer out = OnDevice(std::vector<float>(count));
  const DeviceBuffer lse = OnDevice(std::vector<float>(batch.size() * query_heads));
  kernels::FourierAttentionParams params = batch.Params(query_heads);
  params.q = q.data();
  params.out = out.data();
  params.lse = lse.as<float>();
  params.workspace = workspace.data();
  params.workspace_bytes = static_cast<int64_t>(workspace.size());
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(batch.Schedule(params, stream), cudaSuccess);
  ASSERT_EQ(kernels::LaunchFourierAttention(params, stream), cudaSuccess);
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph, 0), cudaSuccess);
  // Segments move from one sequence to the other.
  for (const std::vector<int>& segments :
       {std::vector{30, 2, 7}, {1, 38, 0}, {13, 13, 13}, {0, 39, 0}}) {
    batch.Redistribute(segments);
    const auto queries = RandomQueries(count, 1, random_);
    ASSERT_TRUE(q.CopyFrom(queries.data(), count * sizeof(float)).ok());
    ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
    std::vector<float> got(count), got_lse(batch.size() * query_heads);
    ASSERT_TRUE(out.CopyTo(got.data(), out.size()).ok());
    ASSERT_TRUE(lse.CopyTo(got_lse.data(), lse.size()).ok());
    Compare(batch, test, 4, queries, got, got_lse, true);
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

TEST_F(FourierAttention, SchedulesAreRefusedIfTheyCannotBe) {
  const CodecCase test = UniformCases()[0];
  Batch batch(test, {{1, {}}}, random_);
  const kernels::AttentionSchedule good = batch.Params(4 * test.kv_heads).schedule;
  const auto refused = [&](auto change) {
    kernels::AttentionSchedule schedule = good;
    change(schedule);
    return kernels::LaunchAttentionSchedule(schedule, nullptr, nullptr, nullptr) ==
           cudaErrorInvalidValue;
  };
  EXPECT_FALSE(refused([](auto&) {}));
  EXPECT_TRUE(refused([](auto& s) { s.data = nullptr; }));
  EXPECT_TRUE(refused([](auto& s) { s.bytes -= 1; }));
  EXPECT_TRUE(refused([](auto& s) { s.shape.batch = 0; }));
  EXPECT_TRUE(refused([](auto& s) { s.shape.batch = 65536; }));
  EXPECT_TRUE(refused([](auto& s) { s.shape.kv_heads = 257; }));
  EXPECT_TRUE(refused([](auto& s) { s.shape.query_heads += 1; }));
  EXPECT_TRUE(refused([](auto& s) { s.shape.workers = kernels::kMaxWorkers + 1; }));
  EXPECT_TRUE(refused([](auto& s) { s.shape.unit_cost = 0; }));
  EXPECT_TRUE(refused([](auto& s) { s.shape.page_cost = kernels::kMaxCost + 1; }));
  EXPECT_TRUE(refused([](auto& s) { s.shape.units_per_segment = 3; }));
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
}  // namespace fourierkv
