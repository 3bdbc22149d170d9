#include "clients/search/profile_search.h"

#include <memory>
#include <string>
#include <vector>

#include "clients/eval/cache_form.h"
#include "clients/eval/controls.h"
#include "clients/search/archive_search.h"
#include "compute/codec/archive_codec.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace fourierkv {
namespace {

// Text of no meaning, but with words that come back.
std::string Background() {
  std::string text;
  uint32_t state = 12345;
  for (int i = 0; i < 4000; ++i) {
    state = state * 1664525 + 1013904223;
    const uint32_t word = state >> 24;
    text += std::string(1 + word % 7, static_cast<char>('a' + word % 26)) + (i % 11 ? " " : ".\n");
  }
  return text;
}

class ProfileSearchTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto model = LlamaModel::Load(std::string(FOURIERKV_TEST_DATA) + "/needle-4m");
    ASSERT_TRUE(model.ok()) << model.status();
    backend_ = CreateCpuBackend(2).release();
    engine_ = new EvalEngine{*model, std::make_shared<ThreadPool>(2), backend_};
    contexts_ = new std::vector<std::unique_ptr<EvalContext>>();
    EvalTextOptions text;
    text.context_tokens = 1792;
    text.tail_tokens = 96;
    text.keep_from_end = 512;
    text.tasks = {RecallTask::kNeedle};
    text.questions = 3;
    auto made = MakeEvalText(Background(), text);
    ASSERT_TRUE(made.ok()) << made.status();
    auto context = EvalContext::Create(*engine_, *std::move(made));
    ASSERT_TRUE(context.ok()) << context.status();
    contexts_->push_back(*std::move(context));
    auto probe = SearchProbe::Create(*engine_, *contexts_);
    ASSERT_TRUE(probe.ok()) << probe.status();
    probe_ = new SearchProbe(*std::move(probe));
  }
  static void TearDownTestSuite() {
    delete probe_;
    delete contexts_;
    delete engine_;
    delete backend_;
  }

  static SearchOptions Options() {
    SearchOptions options;
    options.name = "found";
    options.ratio = 7;
    options.costs.recent_window = 256;
    options.representations = *ParseRepresentations(kDefaultRepresentations, BasisKind::kDct2, 256);
    return options;
  }

  absl::StatusOr<SearchResult> Search(const SearchOptions& options, SearchState& state) {
    return SearchProfile(*probe_, options, state, [this](absl::string_view message) {
      progress_.push_back(std::string(message));
    });
  }

  static ComputeBackend* backend_;
  static EvalEngine* engine_;
  static std::vector<std::unique_ptr<EvalContext>>* contexts_;
  static SearchProbe* probe_;
  std::vector<std::string> progress_;
};

ComputeBackend* ProfileSearchTest::backend_ = nullptr;
EvalEngine* ProfileSearchTest::engine_ = nullptr;
std::vector<std::unique_ptr<EvalContext>>* ProfileSearchTest::contexts_ = nullptr;
SearchProbe* ProfileSearchTest::probe_ = nullptr;

TEST_F(ProfileSearchTest, FindsAProfileThatHarmsLessThanUniformBitsOfTheSameSize) {
  SearchState state;
  const auto found = Search(Options(), state);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_TRUE(found->profile.Validate().ok());
  EXPECT_GE(found->ratio, 7);
  EXPECT_LT(found->ratio, 7.5);
  EXPECT_THAT(progress_, testing::Contains(testing::HasSubstr("24 of 24 heads")));
  EXPECT_EQ(found->profile.evidence.at("model"), engine_->model->revision().ToHex());
  EXPECT_TRUE(found->profile.evidence.contains("measured_kl"));

  const auto uniform = UniformControl(engine_->model->config().Geometry(), 256, 2);  // 7.5 x
  const auto form =
      MakeCompactForm("int2", std::make_shared<const ProfileLayout>(uniform), 256, backend_);
  const auto quality = probe_->Measure(*form);
  ASSERT_TRUE(quality.ok()) << quality.status();
  EXPECT_LT(found->quality.harm, quality->harm);
}

TEST_F(ProfileSearchTest, MeasurementsServeEveryBudget) {
  SearchState state;
  const auto first = Search(Options(), state);
  ASSERT_TRUE(first.ok()) << first.status();
  SearchOptions other = Options();
  other.ratio = 5;
  const auto second = Search(other, state);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->sensitivities, first->sensitivities);
  EXPECT_LT(second->predicted_harm, first->predicted_harm);
}

TEST_F(ProfileSearchTest, AQualityBudgetGivesTheSmallestProfileThatKeepsIt) {
  SearchState state;
  SearchOptions options = Options();
  options.ratio = 30;
  const auto small = Search(options, state);
  ASSERT_TRUE(small.ok()) << small.status();
  options.max_kl = small->quality.kl / 4;
  const auto good = Search(options, state);
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_LE(good->quality.kl, options.max_kl);
  EXPECT_LT(good->ratio, small->ratio);
  EXPECT_GT(good->ratio, 2);
}

TEST_F(ProfileSearchTest, TheArchiveReachesItsRatioAndIsPartOfAValidProfile) {
  SearchState state;
  auto found = Search(Options(), state);
  ASSERT_TRUE(found.ok()) << found.status();
  ArchiveSearchOptions options;
  options.ratio = 16;
  options.recent_window = 256;
  const auto archive = SearchArchive(*probe_, *found, options, [](absl::string_view) {});
  ASSERT_TRUE(archive.ok()) << archive.status();
  EXPECT_GE(archive->ratio, 16);
  EXPECT_LT(archive->ratio, 18);
  found->profile.archive = archive->archive;
  EXPECT_TRUE(found->profile.Validate().ok()) << found->profile.Validate();
  EXPECT_TRUE(ArchiveCodec::Create(found->profile).ok());
}

TEST_F(ProfileSearchTest, RefusesBudgetsThatNothingCanMeet) {
  SearchState state;
  SearchOptions options = Options();
  options.ratio = 1;
  EXPECT_EQ(Search(options, state).status().code(), absl::StatusCode::kInvalidArgument);
  options.ratio = 201;
  EXPECT_EQ(Search(options, state).status().code(), absl::StatusCode::kInvalidArgument);
  options = Options();
  options.representations.clear();
  EXPECT_EQ(Search(options, state).status().code(), absl::StatusCode::kInvalidArgument);
  options = Options();
  options.costs.recent_window = 4096;  // nothing is compressed
  EXPECT_EQ(Search(options, state).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace fourierkv
