// What every engine must do, on a trained model: the tokens that the CPU's runner gives, whether
// caches are computed or filled, alone or beside others.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "compute/base/bfloat16.h"
#include "compute/cache/compact_kv_cache.h"
#include "compute/cache/dense_kv_cache.h"
#include "compute/model/llama_runner.h"
#include "tests/compute/model/engine_under_test.h"
#include "tests/compute/model/needle_text.h"

namespace fourierkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

const char kNeedle[] = FOURIERKV_TEST_DATA "/needle-4m";
constexpr int64_t kWindow = 256;
constexpr int64_t kSegment = 256;

// What never changes, made once for all tests.
struct Fixture {
  Fixture() : own_backend(CreateEngineBackendUnderTest()) {
    if (own_backend == nullptr) return;
    auto loaded = LlamaModel::Load(kNeedle);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    auto profile = CodecProfile::FromFile(absl::StrCat(kNeedle, "/codec_profile.json"));
    EXPECT_TRUE(profile.ok()) << profile.status();
    options.model = *std::move(loaded);
    options.layout = std::make_shared<const ProfileLayout>(*profile);
    options.backend = own_backend.get();
    options.pool = std::make_shared<ThreadPool>(2);
    options.segment_tokens = kSegment;
    options.kv_memory = int64_t{256} << 20;
    auto made = CreateEngineUnderTest(options);
    EXPECT_TRUE(made.ok()) << made.status();
    engine = *std::move(made);
  }

  const std::unique_ptr<ComputeBackend> own_backend;
  const std::unique_ptr<ComputeBackend> cpu = CreateCpuBackend(2);
  EngineOptions options;
  std::unique_ptr<ModelEngine> engine;
};

SequenceOptions Compact(int64_t max_tokens = 4096) {
  return {.compact = true, .recent_window = kWindow, .max_tokens = max_tokens};
}
SequenceOptions Exact(int64_t max_tokens = 4096) {
  return {.compact = false, .max_tokens = max_tokens};
}

// Everything that a sequence hands out.
using Parts = std::map<std::tuple<int, int64_t, Part>, ComputedPart>;

class EngineTest : public testing::Test {
 protected:
  void SetUp() override {
    static const auto* const fixture = new Fixture;
    if (fixture->own_backend == nullptr) {
      GTEST_SKIP() << "NO GPU ON THIS MACHINE: the engine was not tested";
    }
    f_ = fixture;
    sampler_ = std::make_unique<Sampler>(*Sampler::Create({}));
  }

  const KvGeometry geometry() const { return f_->options.model->config().Geometry(); }

  std::unique_ptr<ModelSequence> New(const SequenceOptions& options) {
    auto sequence = f_->engine->NewSequence(options);
    EXPECT_TRUE(sequence.ok()) << sequence.status();
    return *std::move(sequence);
  }

  // The first token behind the prompt.
  SampledToken First(ModelSequence& sequence, std::span<const int32_t> tokens,
                     const PromptOptions& options = {}) {
    std::vector<float> logits;
    const absl::Status status = sequence.Prefill(tokens, &logits, options);
    EXPECT_TRUE(status.ok()) << status;
    return *sampler_->Next(logits);
  }
  SampledToken Next(ModelSequence& sequence, int32_t token) {
    const auto next = sequence.Step(token, *sampler_);
    EXPECT_TRUE(next.ok()) << next.status();
    return *next;
  }
  // Greedily.
  std::string Answer(ModelSequence& sequence, std::span<const int32_t> tokens, int length) {
    std::vector<int32_t> answer = {First(sequence, tokens).token};
    while (static_cast<int>(answer.size()) < length) {
      answer.push_back(Next(sequence, answer.back()).token);
    }
    return DecodeBytes(answer);
  }

  PromptOptions Collect(Parts* parts) {
    return {.on_part = [parts](ComputedPart part) {
      const std::tuple key(part.layer, part.first / kSegment, part.part);
      EXPECT_TRUE(parts->emplace(key, std::move(part)).second) << "handed out twice";
      return absl::OkStatus();
    }};
  }

  // Fills `target` with what another sequence has computed, of `length` tokens.
  absl::Status Fill(FillTarget& target, const Parts& parts, std::vector<SealedSegment>& sealed,
                    int64_t length) {
    const auto compact = static_cast<int64_t>(sealed.size());
    for (SealedSegment& segment : sealed) WriteHeaders(segment, *f_->options.layout, Digest());
    for (int layer = 0; layer < geometry().layers; ++layer) {
      for (int64_t i = 0; i * kSegment < length; ++i) {
        absl::Status s;
        if (i >= 1 && i <= compact) {
          EXPECT_EQ(sealed[i - 1].index, i);
          s = target.InstallCompact(layer, i, SharedBytes::Of(sealed[i - 1].parts[2 * layer].blob),
                                    SharedBytes::Of(sealed[i - 1].parts[2 * layer + 1].blob));
        } else {
          const ComputedPart& k = parts.at({layer, i, Part::kK});
          s = target.InstallExact(layer, k.first, k.tokens, k.values.data(),
                                  parts.at({layer, i, Part::kV}).values.data());
        }
        if (!s.ok()) return s;
      }
      if (absl::Status s = target.MarkLayerReady(layer); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  // Follows the CPU's runner, token by token.
  void CompareWithTheRunner(const SequenceOptions& options, KvCache& cache,
                            const std::vector<int32_t>& prompt, int steps) {
    const double tolerance = EngineTolerancesUnderTest().log_prob;
    LlamaRunner runner(f_->options.model, f_->options.pool);
    ForwardOutput out;
    ASSERT_TRUE(Prefill(runner, prompt, cache, &out).ok());
    const auto sequence = New(options);
    SampledToken got = First(*sequence, prompt);
    for (int step = 0; step <= steps; ++step) {
      SCOPED_TRACE(testing::Message() << "token " << step);
      const SampledToken expected = *sampler_->Next(out.logits);
      std::vector<float> sorted = out.logits;
      std::partial_sort(sorted.begin(), sorted.begin() + 2, sorted.end(), std::greater<>());
      if (got.token == expected.token) {
        EXPECT_NEAR(got.log_probability, expected.log_probability, tolerance);
      } else {
        EXPECT_LT(sorted[0] - sorted[1], 2 * tolerance) << "another token than the likeliest";
      }
      ASSERT_EQ(sequence->length(), cache.length());
      if (step == steps || HasFailure()) return;
      ASSERT_TRUE(runner.Forward({&expected.token, 1}, cache, &out).ok());
      got = Next(*sequence, expected.token);
    }
  }

  void ExpectRefused(const absl::Status& status, StatusCode code, const std::string& words) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
  }

  const unsigned seed_ = std::random_device{}();
  testing::ScopedTrace trace_{__FILE__, __LINE__, seed_};
  std::mt19937 random_{seed_};
  const Fixture* f_ = nullptr;
  std::unique_ptr<Sampler> sampler_;
};

TEST_F(EngineTest, IsTheOneAskedFor) {
  EXPECT_STREQ(f_->engine->name(), EngineTolerancesUnderTest().name);
  EXPECT_STREQ(f_->engine->weight_dtype(), "fp32") << "bf16 files: no weight is rounded";
}

TEST_F(EngineTest, ExactSequencesContinueAsTheRunnerDoes) {
  for (const int64_t length : {int64_t{200}, int64_t{1291}}) {
    const NeedleText text(length, 2, random_());
    auto cache = *DenseKvCache::Create(geometry(), f_->cpu.get(), 4096);
    CompareWithTheRunner(Exact(), *cache, text.tokens, 12);
  }
}

TEST_F(EngineTest, CompactSequencesContinueAsTheRunnerDoesAcrossASeal) {
  const int64_t length = kWindow + (2 + 3) * kSegment - 6;
  NeedleText text(length, 2, random_());
  text.tokens.resize(length);
  auto cache = *CompactKvCache::Create(f_->options.layout, f_->cpu.get(),
                                       {.recent_window = kWindow, .max_tokens = 4096});
  CompareWithTheRunner(Compact(), *cache, text.tokens, 14);
  EXPECT_EQ(cache->stats().compact_segments, 4);
}

TEST_F(EngineTest, FindsNumbersInTheirPrompts) {
  for (const SequenceOptions& options : {Exact(), Compact()}) {
    const NeedleText text(1900, 3, random_());
    const auto sequence = New(options);
    EXPECT_EQ(Answer(*sequence, text.tokens, 7), text.number);
    const CacheStats stats = sequence->stats();
    EXPECT_EQ(stats.compact_segments, options.compact ? CompactKvCache::CompactSegments(
                                                            sequence->length(), kSegment, kWindow)
                                                      : 0);
    EXPECT_EQ(stats.dense_bytes, geometry().DenseBytes(sequence->length()));
  }
}

TEST_F(EngineTest, APromptMayComeInPieces) {
  const NeedleText text(1500, 2, random_());
  const std::span<const int32_t> tokens = text.tokens;
  const auto sequence = New(Exact());
  ASSERT_TRUE(sequence->Prefill(tokens.first(1), nullptr).ok());
  ASSERT_TRUE(sequence->Prefill(tokens.subspan(1, 700), nullptr).ok());
  EXPECT_EQ(sequence->length(), 701);
  EXPECT_EQ(Answer(*sequence, tokens.subspan(701), 7), text.number);
}

TEST_F(EngineTest, HandsOutWhatItComputes) {
  NeedleText text(700, 1, random_());
  text.tokens.resize(700);
  auto cache = *DenseKvCache::Create(geometry(), f_->cpu.get(), 4096);
  LlamaRunner runner(f_->options.model, f_->options.pool);
  ForwardOutput out;
  ASSERT_TRUE(Prefill(runner, text.tokens, *cache, &out).ok());
  Parts parts;
  First(*New(Exact()), text.tokens, Collect(&parts));
  const KvGeometry g = geometry();
  ASSERT_EQ(parts.size(), 2 * 3 * g.layers);
  for (const auto& [key, part] : parts) {
    SCOPED_TRACE(testing::Message() << PartName(part.part) << " of layer " << part.layer
                                    << " from token " << part.first);
    ASSERT_EQ(part.tokens, std::min<int64_t>(kSegment, 700 - part.first));
    ASSERT_EQ(part.values.size(), g.kv_heads * part.tokens * g.head_dim);
    const ExactBlock block = cache->exact_block(part.layer);
    double difference = 0, norm = 0;
    for (size_t i = 0; i < part.values.size(); ++i) {
      const int64_t head = static_cast<int64_t>(i) / (part.tokens * g.head_dim);
      const int64_t at = static_cast<int64_t>(i) % (part.tokens * g.head_dim);
      const uint16_t* from = part.part == Part::kK ? block.k : block.v;
      const double expected =
          Bf16ToFloat(from[head * block.head_stride + part.first * g.head_dim + at]);
      difference += std::pow(Bf16ToFloat(part.values[i]) - expected, 2);
      norm += expected * expected;
    }
    EXPECT_LE(std::sqrt(difference / norm), EngineTolerancesUnderTest().kv);
  }
}

TEST_F(EngineTest, ExactTokensCanBeReadAsTheyWereHandedOut) {
  NeedleText text(1500, 1, random_());
  text.tokens.resize(1500);
  Parts parts, read;
  const auto sequence = New(Compact());
  First(*sequence, text.tokens, Collect(&parts));
  ASSERT_EQ(sequence->stats().compact_segments, 3);
  const auto collect = Collect(&read).on_part;
  ASSERT_TRUE(sequence->ReadExact(0, kSegment, collect).ok());
  ASSERT_TRUE(sequence->ReadExact(4 * kSegment, 1500 - 4 * kSegment, collect).ok());
  ASSERT_EQ(read.size(), 2 * 3 * geometry().layers);
  for (const auto& [key, part] : read) {
    const ComputedPart& expected = parts.at(key);
    EXPECT_EQ(part.first, expected.first);
    EXPECT_EQ(part.tokens, expected.tokens);
    EXPECT_EQ(part.values, expected.values);
  }
  ExpectRefused(sequence->ReadExact(kSegment, kSegment, collect), StatusCode::kInvalidArgument,
                "position 256");
  ExpectRefused(sequence->ReadExact(5 * kSegment, kSegment, collect), StatusCode::kInvalidArgument,
                "position 1280");
  ExpectRefused(sequence->ReadExact(0, kSegment,
                                    [](const ComputedPart&) { return absl::AbortedError("no"); }),
                StatusCode::kAborted, "no");
}

TEST_F(EngineTest, AFilledSequenceContinuesAsTheOneThatWasComputed) {
  for (const SequenceOptions& options : {Exact(), Compact()}) {
    SCOPED_TRACE(options.compact ? "compact" : "exact");
    const NeedleText text(1700 + static_cast<int64_t>(random_() % 256), 2, random_());
    Parts parts;
    const auto computed = New(options);
    SampledToken token = First(*computed, text.tokens, Collect(&parts));
    auto sealed = computed->TakeSealed();
    ASSERT_TRUE(sealed.ok()) << sealed.status();
    ASSERT_EQ(sealed->size(), computed->stats().compact_segments);
    EXPECT_EQ(sealed->empty(), !options.compact);
    EXPECT_THAT(*computed->TakeSealed(), testing::IsEmpty()) << "only once";

    const auto filled = New(options);
    const auto length = static_cast<int64_t>(text.tokens.size());
    FillTarget& target = *filled->fill_target();
    ASSERT_TRUE(
        target
            .BeginFill({.length = length, .compact_segments = static_cast<int64_t>(sealed->size())},
                       absl::Now() + absl::Seconds(60))
            .ok());
    EXPECT_EQ(filled->length(), length);
    std::thread filling([&] {
      const absl::Status status = Fill(target, parts, *sealed, length);
      EXPECT_TRUE(status.ok()) << status;
    });
    std::vector<float> logits;  // waits for the fill
    const absl::Status status = filled->Prefill({&token.token, 1}, &logits);
    filling.join();
    ASSERT_TRUE(status.ok()) << status;
    std::vector<float> expected;
    ASSERT_TRUE(computed->Prefill({&token.token, 1}, &expected).ok());
    EXPECT_THAT(logits, testing::Pointwise(testing::FloatNear(1e-4), expected));
    token = *sampler_->Next(logits);
    for (int step = 0; step < 10; ++step) {
      const SampledToken a = Next(*computed, token.token), b = Next(*filled, token.token);
      EXPECT_EQ(a.token, b.token);
      EXPECT_NEAR(a.log_probability, b.log_probability, 1e-4);
      token = a;
    }
  }
}

TEST_F(EngineTest, SegmentsBeyondTheErrorBoundStayExact) {
  const NeedleText text(1700, 2, random_());
  SequenceOptions bounded = Compact();
  bounded.max_relative_error = 1e-6f;
  const auto sequence = New(bounded), exact = New(Exact());
  SampledToken a = First(*sequence, text.tokens), b = First(*exact, text.tokens);
  for (int step = 0; step < 5; ++step) {
    EXPECT_EQ(a.token, b.token);
    EXPECT_NEAR(a.log_probability, b.log_probability, 1e-4);
    a = Next(*sequence, a.token);
    b = Next(*exact, b.token);
  }
  EXPECT_EQ(sequence->stats().compact_segments, 0);
  EXPECT_GT(sequence->stats().exact_inside, 0);
  EXPECT_THAT(*sequence->TakeSealed(), testing::IsEmpty());
}

TEST_F(EngineTest, SequencesOfSeveralThreadsDoNotDisturbEachOther) {
  constexpr int kThreads = 5;
  std::vector<NeedleText> texts;
  for (int i = 0; i < kThreads; ++i) texts.emplace_back(900 + 307 * i, 2, random_());
  std::vector<std::string> answers(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const auto sequence = New(i % 2 == 0 ? Compact() : Exact());
      auto sampler = *Sampler::Create({});
      std::vector<float> logits;
      ASSERT_TRUE(sequence->Prefill(texts[i].tokens, &logits).ok());
      SampledToken token = *sampler.Next(logits);
      for (int step = 0; step < 7; ++step) {
        answers[i] += static_cast<char>(token.token);
        token = *sequence->Step(token.token, sampler);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < kThreads; ++i) EXPECT_EQ(answers[i], texts[i].number) << i;
}

TEST_F(EngineTest, TokensMayBeDrawn) {
  const NeedleText text(700, 1, random_());
  const auto greedy = New(Exact()), drawn = New(Exact());
  // Nothing but the likeliest token is left to draw.
  auto sampler = *Sampler::Create({.temperature = 0.7, .top_p = 1e-6});
  SampledToken token = First(*greedy, text.tokens);
  First(*drawn, text.tokens);
  for (int step = 0; step < 5; ++step) {
    const auto next = drawn->Step(token.token, sampler);
    ASSERT_TRUE(next.ok()) << next.status();
    token = Next(*greedy, token.token);
    EXPECT_EQ(next->token, token.token);
    EXPECT_NEAR(next->log_probability, token.log_probability, 1e-4);
  }
}

TEST_F(EngineTest, ACallbacksFailureStopsThePromptAndItCanGoOn) {
  const NeedleText text(1100, 1, random_());
  const auto sequence = New(Exact());
  ExpectRefused(sequence->Prefill(text.tokens, nullptr,
                                  {.wanted = [] { return absl::CancelledError("gone"); }}),
                StatusCode::kCancelled, "gone");
  EXPECT_EQ(sequence->length(), 0);
  ExpectRefused(
      sequence->Prefill(
          text.tokens, nullptr,
          {.on_part = [](const ComputedPart&) { return absl::UnavailableError("nobody"); }}),
      StatusCode::kUnavailable, "nobody");
  const auto done = static_cast<size_t>(sequence->length());
  EXPECT_LE(done, 512);
  EXPECT_EQ(Answer(*sequence, std::span(text.tokens).subspan(done), 7), text.number);
}

TEST_F(EngineTest, RefusesBadInput) {
  SequenceOptions options = Compact();
  options.recent_window = -1;
  ExpectRefused(f_->engine->NewSequence(options).status(), StatusCode::kInvalidArgument,
                "recent_window");
  ExpectRefused(f_->engine->NewSequence(Exact(0)).status(), StatusCode::kInvalidArgument,
                "max_tokens");

  const auto sequence = New(Exact(600));
  ExpectRefused(sequence->Prefill({}, nullptr), StatusCode::kInvalidArgument, "empty");
  for (const int32_t id : {-1, 264, INT32_MAX}) {
    ExpectRefused(sequence->Prefill(std::vector<int32_t>{1, id}, nullptr),
                  StatusCode::kInvalidArgument, "tokens[1]");
    ExpectRefused(sequence->Step(id, *sampler_).status(), StatusCode::kInvalidArgument,
                  "tokens[0]");
  }
  EXPECT_EQ(sequence->length(), 0);
  ASSERT_TRUE(sequence->Prefill(std::vector<int32_t>(600, 1), nullptr).ok());
  ExpectRefused(sequence->Step(1, *sampler_).status(), StatusCode::kResourceExhausted, "600");
  EXPECT_EQ(sequence->length(), 600);
}

TEST_F(EngineTest, RefusesFillsThatCannotBe) {
  const absl::Time soon = absl::Now() + absl::Seconds(60);
  const size_t size = geometry().kv_heads * kSegment * geometry().head_dim;
  const std::vector<uint16_t> values(size, 0);
  {
    const auto sequence = New(Compact(2048));
    FillTarget& target = *sequence->fill_target();
    ExpectRefused(target.InstallExact(0, 0, 1, values.data(), values.data()),
                  StatusCode::kFailedPrecondition, "layer 0");
    ExpectRefused(target.BeginFill({.length = 2049}, soon), StatusCode::kResourceExhausted, "2048");
    ExpectRefused(target.BeginFill({.length = 600, .compact_segments = 2}, soon),
                  StatusCode::kInvalidArgument, "600");
    EXPECT_EQ(sequence->length(), 0);
    ASSERT_TRUE(target.BeginFill({.length = 700, .compact_segments = 1}, soon).ok());
    ExpectRefused(target.BeginFill({.length = 700}, soon), StatusCode::kFailedPrecondition,
                  "empty");
    ExpectRefused(target.InstallExact(0, 255, 2, values.data(), values.data()),
                  StatusCode::kInvalidArgument, "position 255");
    ExpectRefused(target.InstallExact(geometry().layers, 0, 1, values.data(), values.data()),
                  StatusCode::kInvalidArgument, "does not exist");
    ASSERT_TRUE(target.InstallExact(0, 0, 256, values.data(), values.data()).ok());
    ExpectRefused(target.MarkLayerReady(0), StatusCode::kFailedPrecondition, "position 512");
    ASSERT_TRUE(target.InstallExact(0, 512, 188, values.data(), values.data()).ok());
    ExpectRefused(target.MarkLayerReady(0), StatusCode::kFailedPrecondition, "segment 1");
    const auto garbage = std::make_shared<const std::vector<std::byte>>(1000);
    ExpectRefused(target.InstallCompact(0, 2, SharedBytes::Of(garbage), SharedBytes::Of(garbage)),
                  StatusCode::kInvalidArgument, "segment 2");
    ExpectRefused(target.InstallCompact(0, 1, SharedBytes::Of(garbage), SharedBytes::Of(garbage)),
                  StatusCode::kDataLoss, "segment 1");
    target.FailFill(absl::DataLossError("lost on the way"));
    ExpectRefused(sequence->Prefill(std::vector<int32_t>{1}, nullptr), StatusCode::kDataLoss,
                  "lost on the way");
  }
  const auto late = New(Exact(2048));
  ASSERT_TRUE(late->fill_target()->BeginFill({.length = 300}, absl::Now()).ok());
  EXPECT_EQ(late->Prefill(std::vector<int32_t>{1}, nullptr).code(), StatusCode::kDeadlineExceeded);
}

TEST_F(EngineTest, BlobsOfAnotherPlaceAreNotInstalled) {
  const NeedleText text(1200, 1, random_());
  const auto computed = New(Compact());
  First(*computed, text.tokens);
  auto sealed = *computed->TakeSealed();
  ASSERT_GE(sealed.size(), 2);
  for (SealedSegment& segment : sealed) WriteHeaders(segment, *f_->options.layout, Digest());
  const auto sequence = New(Compact());
  FillTarget& target = *sequence->fill_target();
  ASSERT_TRUE(
      target.BeginFill({.length = 1200, .compact_segments = 2}, absl::Now() + absl::Seconds(60))
          .ok());
  const auto blob = [&](int segment, int part) {
    return SharedBytes::Of(sealed[segment - 1].parts[part].blob);
  };
  ExpectRefused(target.InstallCompact(0, 1, blob(2, 0), blob(2, 1)), StatusCode::kInvalidArgument,
                "position 512");
  ExpectRefused(target.InstallCompact(0, 1, blob(1, 1), blob(1, 0)), StatusCode::kInvalidArgument,
                "it holds V");
  ExpectRefused(target.InstallCompact(1, 1, blob(1, 0), blob(1, 1)), StatusCode::kInvalidArgument,
                "layer 0");
  EXPECT_TRUE(target.InstallCompact(1, 1, blob(1, 2), blob(1, 3)).ok());
  target.FailFill(absl::CancelledError("enough"));
}

}  // namespace
}  // namespace fourierkv
