// The GPU runner against the CPU runner on a trained model. Needs a GPU; says so and skips without
// one.

#include "compute/model/cuda/cuda_llama_runner.h"

#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/cache/compact_kv_cache.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/model/byte_tokenizer.h"
#include "compute/model/llama_runner.h"
#include "tests/compute/model/needle_text.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

const char kNeedle[] = FOURIERKV_TEST_DATA "/needle-4m";

// What bf16 activations and weights of the softmax may cost, of log probabilities that spread over
// about 20: three times what was seen.
constexpr double kTolerance = 0.4;
constexpr double kMeanTolerance = 0.2;

struct Difference {
  double largest = 0;
  double mean = 0;
};

double LogSumExp(std::span<const float> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - max);
  return max + std::log(sum);
}

// Of the log probabilities: a shift of all logits means nothing.
Difference Compare(std::span<const float> a, std::span<const float> b) {
  EXPECT_EQ(a.size(), b.size());
  const double shift = LogSumExp(a) - LogSumExp(b);
  Difference d;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = std::abs(static_cast<double>(a[i]) - b[i] - shift);
    d.largest = std::isnan(x) ? INFINITY : std::max(d.largest, x);
    d.mean += x / static_cast<double>(a.size());
  }
  return d;
}

int32_t Best(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// What never changes, made once for all tests.
struct Fixture {
  Fixture() {
    auto loaded = LlamaModel::Load(kNeedle);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    model = *std::move(loaded);
    auto uploaded = DeviceLlamaModel::Upload(*model);
    EXPECT_TRUE(uploaded.ok()) << uploaded.status();
    device_model = *std::move(uploaded);
    auto read = CodecProfile::FromFile(absl::StrCat(kNeedle, "/codec_profile.json"));
    EXPECT_TRUE(read.ok()) << read.status();
    layout = std::make_shared<const ProfileLayout>(*read);
    auto made = DeviceProfile::Create(layout);
    EXPECT_TRUE(made.ok()) << made.status();
    profile = *std::move(made);
    backend = CreateCpuBackend();
    pool = std::make_shared<ThreadPool>();
  }

  std::shared_ptr<const LlamaModel> model;
  std::shared_ptr<const DeviceLlamaModel> device_model;
  std::shared_ptr<const ProfileLayout> layout;
  std::shared_ptr<const DeviceProfile> profile;
  std::unique_ptr<ComputeBackend> backend;
  std::shared_ptr<ThreadPool> pool;
};

class CudaRunner : public testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: the model was not run on one";
    }
    static const auto* const fixture = new Fixture;
    f_ = fixture;
  }

  void MakeRunner(int blocks, int slots, CudaRunnerOptions options = {}) {
    auto pool = DeviceKvPool::Create(f_->profile, {blocks, slots});
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
    auto runner = CudaLlamaRunner::Create(f_->device_model, pool_, options);
    ASSERT_TRUE(runner.ok()) << runner.status();
    runner_ = *std::move(runner);
  }
  std::unique_ptr<DeviceKvCache> Cache(bool compact, int64_t window = 256) {
    return *DeviceKvCache::Create(
        pool_, {.compact = compact, .recent_window = window, .max_tokens = 16384});
  }
  std::unique_ptr<DenseKvCache> CpuCache() {
    return *DenseKvCache::Create(f_->model->config().Geometry(), f_->backend.get(), 16384);
  }
  // The compact cache that a dense one becomes, as on the GPU: computed exactly, then encoded.
  std::unique_ptr<CompactKvCache> Compacted(const DenseKvCache& dense, int64_t window) {
    auto cache = *CompactKvCache::Create(f_->layout, f_->backend.get(),
                                         {.recent_window = window, .max_tokens = 16384});
    EXPECT_TRUE(cache->BeginFill({.length = dense.length()}, absl::InfiniteFuture()).ok());
    const KvGeometry& g = dense.geometry();
    for (int layer = 0; layer < g.layers; ++layer) {
      const ExactBlock block = dense.exact_block(layer);
      std::vector<uint16_t> k, v;
      for (int h = 0; h < g.kv_heads; ++h) {
        const uint16_t* from = block.k + h * block.head_stride;
        k.insert(k.end(), from, from + dense.length() * g.head_dim);
        from = block.v + h * block.head_stride;
        v.insert(v.end(), from, from + dense.length() * g.head_dim);
      }
      EXPECT_TRUE(cache->InstallExact(layer, 0, dense.length(), k.data(), v.data()).ok());
      EXPECT_TRUE(cache->MarkLayerReady(layer).ok());
    }
    const absl::Status status = cache->Compact();
    EXPECT_TRUE(status.ok()) << status;
    return cache;
  }
  std::vector<float> CpuPrefill(const std::vector<int32_t>& tokens, KvCache& cache) {
    LlamaRunner runner(f_->model, f_->pool);
    ForwardOutput out;
    const absl::Status status = Prefill(runner, tokens, cache, &out);
    EXPECT_TRUE(status.ok()) << status;
    return out.logits;
  }
  std::vector<float> GpuPrefill(const std::vector<int32_t>& tokens, DeviceKvCache& cache) {
    ForwardOutput out;
    const absl::Status status = runner_->Prefill(tokens, cache, &out);
    EXPECT_TRUE(status.ok()) << status;
    return out.logits;
  }
  void ExpectNear(std::span<const float> gpu, std::span<const float> cpu) {
    const Difference d = Compare(gpu, cpu);
    EXPECT_LT(d.largest, kTolerance);
    EXPECT_LT(d.mean, kMeanTolerance);
    worst_.largest = std::max(worst_.largest, d.largest);
    worst_.mean = std::max(worst_.mean, d.mean);
  }
  void TearDown() override {
    std::cout << "largest difference of a logit " << worst_.largest << ", of a mean " << worst_.mean
              << "\n";
  }

  // Decodes prompts of these lengths together, with the same tokens on both sides.
  void CompareDecoding(const std::vector<int64_t>& lengths, int steps, bool compact,
                       int64_t window) {
    std::vector<std::unique_ptr<DeviceKvCache>> caches;
    std::vector<std::unique_ptr<KvCache>> cpu_caches;
    std::vector<DecodeRow> rows;
    for (size_t i = 0; i < lengths.size(); ++i) {
      const NeedleText text(lengths[i], 3, random_());
      caches.push_back(Cache(compact, window));
      auto cpu = CpuCache();
      const std::vector<float> logits = CpuPrefill(text.tokens, *cpu);
      ExpectNear(GpuPrefill(text.tokens, *caches.back()), logits);
      rows.push_back({caches.back().get(), Best(logits)});
      if (compact) {
        cpu_caches.push_back(Compacted(*cpu, window));
      } else {
        cpu_caches.push_back(std::move(cpu));
      }
    }
    LlamaRunner cpu_runner(f_->model, f_->pool);
    DecodeOutput out;
    for (int step = 0; step < steps; ++step) {
      const absl::Status status = runner_->DecodeStep(rows, &out, true);
      ASSERT_TRUE(status.ok()) << status;
      for (size_t i = 0; i < rows.size(); ++i) {
        SCOPED_TRACE(testing::Message() << "length " << lengths[i] << ", step " << step);
        ForwardOutput cpu;
        ASSERT_TRUE(cpu_runner.Forward({&rows[i].token, 1}, *cpu_caches[i], &cpu).ok());
        const std::span<const float> logits(out.logits.data() + i * cpu.logits.size(),
                                            cpu.logits.size());
        ExpectNear(logits, cpu.logits);
        ASSERT_EQ(out.choices[i].token, Best(logits));
        ASSERT_EQ(caches[i]->length(), cpu_caches[i]->length());
        if (compact) {
          const auto& cpu_cache = static_cast<const CompactKvCache&>(*cpu_caches[i]);
          ASSERT_EQ(caches[i]->stats().compact_segments, cpu_cache.stats().compact_segments);
        }
        rows[i].token = Best(cpu.logits);
        if (HasFailure()) return;
      }
    }
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 random_{seed_};
  const Fixture* f_ = nullptr;
  std::shared_ptr<DeviceKvPool> pool_;
  std::unique_ptr<CudaLlamaRunner> runner_;
  Difference worst_;
};

TEST_F(CudaRunner, PromptsGiveTheCpusLogitsWhateverTheChunks) {
  for (const int chunk : {512, 100, 37}) {
    MakeRunner(20, 0, {.max_batch = 1, .chunk_tokens = chunk});
    for (const int64_t length : {int64_t{1}, int64_t{64}, int64_t{257}, int64_t{1999}}) {
      SCOPED_TRACE(testing::Message() << "chunk " << chunk << ", length " << length);
      NeedleText text(std::max<int64_t>(length, 300), 1, 5);
      text.tokens.resize(length);
      auto cpu = CpuCache();
      auto gpu = Cache(false);
      ExpectNear(GpuPrefill(text.tokens, *gpu), CpuPrefill(text.tokens, *cpu));
      EXPECT_EQ(gpu->length(), length);
    }
  }
}

TEST_F(CudaRunner, APromptMayComeInPieces) {
  MakeRunner(20, 0);
  const NeedleText text(1500, 2, random_());
  auto whole = Cache(false), pieces = Cache(false);
  const std::vector<float> expected = GpuPrefill(text.tokens, *whole);
  ForwardOutput out;
  const std::span<const int32_t> tokens = text.tokens;
  ASSERT_TRUE(runner_->Prefill(tokens.first(1), *pieces, &out, Logits::kNone).ok());
  EXPECT_TRUE(out.logits.empty());
  ASSERT_TRUE(runner_->Prefill(tokens.subspan(1, 700), *pieces, &out, Logits::kNone).ok());
  ASSERT_TRUE(runner_->Prefill(tokens.subspan(701), *pieces, &out).ok());
  ExpectNear(out.logits, expected);
}

TEST_F(CudaRunner, DenseBatchesOfUnequalLengthsDecodeAsOnTheCpu) {
  MakeRunner(64, 0);
  CompareDecoding({300, 319, 1001, 2500}, 70, false, 0);
}

TEST_F(CudaRunner, CompactBatchesOfUnequalLengthsDecodeAsOnTheCpu) {
  MakeRunner(64, 64);
  // The first has no compact segment; the second gets one on the way, so does the third.
  CompareDecoding({400, 760, 1401, 3001}, 70, true, 256);
}

TEST_F(CudaRunner, ACompactCacheTakesAnotherPrompt) {
  MakeRunner(40, 40, {.chunk_tokens = 100});
  const NeedleText first(2001, 2, random_()), second(333, 1, random_());
  auto gpu = Cache(true, 256);
  auto cpu = CpuCache();
  CpuPrefill(first.tokens, *cpu);
  GpuPrefill(first.tokens, *gpu);
  const int64_t compact = gpu->stats().compact_segments;
  EXPECT_GT(compact, 3);
  auto cpu_compact = Compacted(*cpu, 256);
  // In one chunk, so that the CPU, too, attends to all of it exactly.
  LlamaRunner runner(f_->model, f_->pool);
  ForwardOutput out;
  ASSERT_TRUE(runner.Forward(second.tokens, *cpu_compact, &out).ok());
  ExpectNear(GpuPrefill(second.tokens, *gpu), out.logits);
  EXPECT_EQ(gpu->stats().compact_segments, cpu_compact->stats().compact_segments);
  EXPECT_GT(gpu->stats().compact_segments, compact);
}

TEST_F(CudaRunner, FindsTheNeedlesThatTheCpuFinds) {
  MakeRunner(200, 100, {.max_batch = 8});
  for (const bool compact : {false, true}) {
    std::vector<std::unique_ptr<DeviceKvCache>> caches;
    std::vector<DecodeRow> rows;
    std::vector<std::string> expected, answers(8);
    for (int i = 0; i < 8; ++i) {
      const NeedleText text(2000 + 517 * i, 4, 100 + i);
      caches.push_back(Cache(compact, 512));
      rows.push_back({caches.back().get(), Best(GpuPrefill(text.tokens, *caches.back()))});
      expected.push_back(text.number);
    }
    DecodeOutput out;
    for (int step = 0; step < 7; ++step) {
      for (int i = 0; i < 8; ++i) answers[i] += static_cast<char>(rows[i].token);
      ASSERT_TRUE(runner_->DecodeStep(rows, &out).ok());
      EXPECT_TRUE(out.logits.empty());
      for (int i = 0; i < 8; ++i) rows[i].token = out.choices[i].token;
    }
    EXPECT_EQ(answers, expected) << (compact ? "compact" : "dense");
  }
}

TEST_F(CudaRunner, RefusesBadInputAndFullPools) {
  MakeRunner(4, 0, {.max_batch = 2, .chunk_tokens = 64});
  auto a = Cache(true), b = Cache(false);
  ForwardOutput out;
  DecodeOutput step;
  EXPECT_TRUE(absl::IsInvalidArgument(runner_->Prefill({}, *a, &out)));
  for (const int32_t id : {-1, 264, INT32_MAX}) {
    const absl::Status status = runner_->Prefill(std::vector<int32_t>{1, id}, *a, &out);
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(std::string(status.message()), HasSubstr("tokens[1]"));
    const std::vector<DecodeRow> rows = {{a.get(), id}};
    EXPECT_TRUE(absl::IsInvalidArgument(runner_->DecodeStep(rows, &step)));
  }
  EXPECT_TRUE(
      absl::IsInvalidArgument(runner_->Prefill(std::vector<int32_t>{1}, *a, &out, Logits::kAll)));
  EXPECT_TRUE(absl::IsInvalidArgument(runner_->DecodeStep({}, &step)));
  EXPECT_TRUE(
      absl::IsInvalidArgument(runner_->DecodeStep(std::vector<DecodeRow>(2, {a.get(), 1}), &step)));
  EXPECT_TRUE(
      absl::IsInvalidArgument(runner_->DecodeStep(std::vector<DecodeRow>(3, {a.get(), 1}), &step)));
  EXPECT_TRUE(absl::IsOutOfRange(runner_->Prefill(std::vector<int32_t>(16385, 1), *a, &out)));

  // 256 + 256 + 256 + 1 tokens would have a segment compact, and there is no slot.
  const absl::Status slots = runner_->Prefill(std::vector<int32_t>(769, 1), *a, &out);
  EXPECT_TRUE(absl::IsResourceExhausted(slots)) << slots;
  EXPECT_THAT(std::string(slots.message()), HasSubstr("slots"));
  ASSERT_TRUE(runner_->Prefill(std::vector<int32_t>(768, 1), *a, &out).ok());
  const absl::Status blocks = runner_->Prefill(std::vector<int32_t>(257, 1), *b, &out);
  EXPECT_TRUE(absl::IsResourceExhausted(blocks)) << blocks;
  EXPECT_EQ(b->length(), 0);
  const std::vector<DecodeRow> rows = {{a.get(), 1}};
  EXPECT_TRUE(absl::IsResourceExhausted(runner_->DecodeStep(rows, &step)));
  EXPECT_EQ(a->length(), 768);

  MakeRunner(4, 1);
  EXPECT_TRUE(absl::IsInvalidArgument(runner_->Prefill(std::vector<int32_t>{1}, *a, &out)));
  EXPECT_TRUE(absl::IsInvalidArgument(
      CudaLlamaRunner::Create(f_->device_model, pool_, {.max_batch = 0}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      CudaLlamaRunner::Create(f_->device_model, pool_, {.chunk_tokens = 0}).status()));
}

}  // namespace
}  // namespace fourierkv
