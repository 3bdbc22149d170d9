// What only an engine with memory of its own has: bounds on it, and models that it cannot run.
// Needs a GPU; says so and skips without one.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "compute/codec/profile.h"
#include "tests/compute/model/engine_under_test.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

const char kNeedle[] = FOURIERKV_TEST_DATA "/needle-4m";

class CudaEngineTest : public testing::Test {
 protected:
  void SetUp() override {
    if (backend_ == nullptr) GTEST_SKIP() << "NO GPU ON THIS MACHINE: the engine was not tested";
    auto model = LlamaModel::Load(kNeedle);
    ASSERT_TRUE(model.ok()) << model.status();
    options_.model = *std::move(model);
    auto profile = CodecProfile::FromFile(absl::StrCat(kNeedle, "/codec_profile.json"));
    ASSERT_TRUE(profile.ok()) << profile.status();
    options_.layout = std::make_shared<const ProfileLayout>(*profile);
    options_.backend = backend_.get();
    options_.pool = std::make_shared<ThreadPool>(2);
    options_.segment_tokens = 256;
  }

  const std::unique_ptr<ComputeBackend> backend_ = CreateEngineBackendUnderTest();
  EngineOptions options_;
};

TEST_F(CudaEngineTest, SequencesClaimTheirMemoryBeforeTheyBegin) {
  // 16 blocks of exact tokens.
  options_.kv_memory = 2 * 16 * options_.layout->profile().geometry.DenseBytes(256);
  const auto engine = CreateEngineUnderTest(options_);
  ASSERT_TRUE(engine.ok()) << engine.status();
  const auto never = (*engine)->NewSequence({.compact = false, .max_tokens = 17 * 256});
  EXPECT_TRUE(absl::IsResourceExhausted(never.status())) << never.status();
  EXPECT_THAT(std::string(never.status().message()), HasSubstr("--kv-memory"));
  auto first = (*engine)->NewSequence({.compact = false, .max_tokens = 10 * 256});
  ASSERT_TRUE(first.ok()) << first.status();
  const auto later = (*engine)->NewSequence({.compact = false, .max_tokens = 7 * 256});
  EXPECT_TRUE(absl::IsResourceExhausted(later.status())) << later.status();
  EXPECT_THAT(std::string(later.status().message()), HasSubstr("try again later"));
  // A compact one of any length needs few blocks.
  const auto compact = (*engine)->NewSequence({.recent_window = 256, .max_tokens = 16000});
  ASSERT_TRUE(compact.ok()) << compact.status();
  EXPECT_TRUE((*compact)->Prefill(std::vector<int32_t>(6000, 7), nullptr).ok());
  EXPECT_GT((*compact)->stats().compact_segments, 20);
  // What a sequence had is there for the next, whatever became of it.
  ASSERT_TRUE((*first)->Prefill(std::vector<int32_t>(10 * 256, 7), nullptr).ok());
  first->reset();
  const auto again = (*engine)->NewSequence({.compact = false, .max_tokens = 10 * 256});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE((*again)->Prefill(std::vector<int32_t>(10 * 256, 7), nullptr).ok());
}

TEST_F(CudaEngineTest, TokensBeyondTheModelsLastPositionAreRefused) {
  options_.kv_memory = int64_t{512} << 20;
  const auto engine = CreateEngineUnderTest(options_);
  ASSERT_TRUE(engine.ok()) << engine.status();
  const auto sequence = (*engine)->NewSequence({.recent_window = 256, .max_tokens = 20000});
  ASSERT_TRUE(sequence.ok()) << sequence.status();
  EXPECT_TRUE(absl::IsOutOfRange((*sequence)->Prefill(std::vector<int32_t>(16385, 1), nullptr)));
  EXPECT_EQ((*sequence)->length(), 0);
}

TEST_F(CudaEngineTest, ProfilesOfWholeSequencesRunOnTheHost) {
  CodecProfile profile;
  profile.name = "whole";
  profile.geometry = options_.layout->profile().geometry;
  profile.basis = BasisKind::kDft;
  profile.segment_tokens = 0;
  profile.sequence = SequenceScope{};
  std::vector<uint16_t> resident(profile.geometry.head_dim - 1);
  std::iota(resident.begin(), resident.end(), 1);
  const HeadProfile head = {.bands = {{profile.sequence->states(), 16, {0}}, {0, 16, resident}}};
  profile.heads.assign(profile.geometry.layers * profile.geometry.kv_heads * 2, head);
  ASSERT_TRUE(profile.Validate().ok()) << profile.Validate();
  options_.layout = std::make_shared<const ProfileLayout>(profile);
  const auto engine = CreateEngineUnderTest(options_);
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_STREQ((*engine)->name(), "host");
}

}  // namespace
}  // namespace fourierkv
