// Profiles beside their controls, and what is written about them.

#include "clients/eval/eval_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/str_cat.h"
#include "clients/eval/controls.h"
#include "clients/eval/eval_output.h"
#include "clients/eval/svg_plot.h"

namespace fourierkv {
namespace {

using testing::HasSubstr;

class EvalRunTest : public testing::Test {
 protected:
  void SetUp() override {
    auto model = LlamaModel::Load(FOURIERKV_TEST_DATA "/needle-4m");
    ASSERT_TRUE(model.ok()) << model.status();
    engine_ = {*model, std::make_shared<ThreadPool>(), backend_.get()};
    auto profile = CodecProfile::FromFile(FOURIERKV_TEST_DATA "/needle-4m/codec_profile.json");
    ASSERT_TRUE(profile.ok()) << profile.status();
    plan_.profiles = {*profile};
    plan_.context_tokens = {1280};
    plan_.tasks = {RecallTask::kNeedle, RecallTask::kCopy};
    plan_.questions = 1;
    plan_.tail_tokens = 64;
    plan_.recent_window = 256;
    std::ifstream file(FOURIERKV_TEST_DATA "/needle-4m/codec_profile.json");
    text_.assign(std::istreambuf_iterator<char>(file), {});
  }

  const std::unique_ptr<ComputeBackend> backend_ = CreateCpuBackend();
  EvalEngine engine_;
  EvalPlan plan_;
  std::string text_;
};

TEST_F(EvalRunTest, ControlsTakeNoMoreBytesThanTheirProfileAndNearlyAsMany) {
  plan_.seeds = {std::random_device()(), 2};
  SCOPED_TRACE(plan_.seeds[0]);
  int steps = 0;
  const auto result = RunEval(engine_, plan_, text_, [&](absl::string_view) { ++steps; });
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->sections.size(), 1);
  const std::vector<EvalRow>& rows = result->sections[0].rows;
  ASSERT_EQ(rows.size(), 8);  // dense, profile, its archive, two at equal bytes, three uniform
  EXPECT_GE(steps, 16);
  EXPECT_EQ(rows[0].kind, FormKind::kDense);
  EXPECT_EQ(rows[1].kind, FormKind::kProfile);
  EXPECT_EQ(rows[2].kind, FormKind::kArchived);
  EXPECT_EQ(rows[2].name, absl::StrCat(rows[1].name, ", archived"));
  EXPECT_LT(rows[2].metrics.bytes.compact_payload, rows[1].metrics.bytes.compact_payload);
  for (int i = 3; i < 8; ++i) EXPECT_EQ(rows[i].kind, FormKind::kControl);
  for (int i = 3; i < 5; ++i) {
    SCOPED_TRACE(rows[i].name);
    EXPECT_EQ(rows[i].control_of, rows[1].name);
    EXPECT_LE(rows[i].metrics.bytes.compact_payload, rows[1].metrics.bytes.compact_payload);
    EXPECT_GT(rows[i].metrics.bytes.compact_payload, 0.95 * rows[1].metrics.bytes.compact_payload);
    EXPECT_LT(rows[i].metrics.tail.mean_kl(), 0.3);
  }
  EXPECT_NEAR(rows[5].metrics.bytes.bits_per_element(), 4.125, 1e-9);
  EXPECT_NEAR(rows[7].metrics.bytes.bits_per_element(), 2.125, 1e-9);
  for (const EvalRow& row : rows) {
    EXPECT_EQ(row.seeds.size(), 2);
    EXPECT_EQ(row.metrics.tasks[0].questions, 2);
    EXPECT_EQ(row.metrics.tail.kl.size(), 2 * 64);
  }

  const EvalSource source = {"<model>", "aa", "held & out.txt", "bb", "", "", "cpu", "1"};
  const std::string table = EvalTable(source, *result);
  EXPECT_THAT(table, HasSubstr("channel PCA, int4"));
  EXPECT_THAT(table, HasSubstr("sha256 bb"));
  const auto json = nlohmann::json::parse(EvalJson(source, *result));
  EXPECT_EQ(json["text_sha256"], "bb");
  const auto& forms = json["contexts"][0]["forms"];
  ASSERT_EQ(forms.size(), 8);
  EXPECT_EQ(forms[3]["equal_bytes_with"], rows[1].name);
  EXPECT_EQ(forms[1]["per_seed"].size(), 2);
  EXPECT_EQ(forms[0]["all_seeds"]["tail"]["kl_mean"], 0);
  const std::string markdown = EvalMarkdown(source, *result);
  EXPECT_THAT(markdown, HasSubstr("| text | `bb` |"));
  EXPECT_THAT(markdown, HasSubstr(absl::StrCat("\n| **", rows[2].name, "** | ")));
  const std::string html = EvalHtml(source, *result);
  EXPECT_THAT(html, HasSubstr("&lt;model&gt;"));
  EXPECT_THAT(html, HasSubstr("held &amp; out.txt"));
  EXPECT_THAT(html, HasSubstr("<svg"));
  EXPECT_THAT(html, testing::Not(HasSubstr("<script")));
  EXPECT_THAT(html, testing::Not(HasSubstr("http")));  // nothing is loaded from elsewhere
}

TEST_F(EvalRunTest, PlansThatCannotBeRunAreRefused) {
  const auto refused = [&](const char* why) {
    const auto result = RunEval(engine_, plan_, text_, nullptr);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(why));
  };
  const EvalPlan good = plan_;
  plan_.seeds.clear();
  refused("at least one");
  plan_ = good;
  plan_.recent_window = -1;
  refused("recent window");
  plan_ = good;
  plan_.context_tokens = {16384};
  refused("the model has 16384 positions");
  plan_.context_tokens = {8192};
  text_.resize(4096);
  refused("the text has");
  plan_.context_tokens = {100};
  plan_.controls = false;
  refused("do not fit");
  plan_ = good;
  plan_.profiles = {UniformProfile({1, 1, 8}, 0, 0, 8, 4)};
  plan_.profiles[0].name = "tiny";
  refused("tiny: ");
}

TEST(PlotTest, PointsAndReferenceStayInsideAndTextsAreEscaped) {
  Plot plot;
  plot.title = "a < b";
  plot.has_reference = true;
  plot.reference_label = "dense";
  plot.points = {{4, 1e-3, Mark::kDot, "p", "p \"hover\""}, {16, 0, Mark::kCross, "", ""}};
  for (const bool log_y : {false, true}) {
    plot.log_y = log_y;
    const std::string svg = PlotSvg(plot);
    EXPECT_THAT(svg, HasSubstr("a &lt; b"));
    EXPECT_THAT(svg, HasSubstr("p &quot;hover&quot;"));
    EXPECT_THAT(svg, testing::Not(HasSubstr("nan")));
    EXPECT_THAT(svg, testing::Not(HasSubstr("inf")));
  }
  plot.points.clear();
  plot.has_reference = false;
  EXPECT_THAT(PlotSvg(plot), testing::Not(HasSubstr("nan")));
}

}  // namespace
}  // namespace fourierkv
