#include "clients/eval/eval_plots.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "clients/eval/eval_cells.h"

namespace fourierkv {
namespace {

// Of the tasks with one right answer that can be known, in percent; 0 without questions.
double FactsRight(const EvalRow& row, const EvalRow&) {
  double right = 0, all = 0;
  for (const TaskScore& task : row.metrics.tasks) {
    if (task.task != RecallTask::kNeedle && task.task != RecallTask::kNear) continue;
    right += task.right;
    all += task.questions;
  }
  return all == 0 ? 0 : 100 * right / all;
}

// Of all tasks, in percent.
double AnswersAsDense(const EvalRow& row, const EvalRow&) {
  double agree = 0, all = 0;
  for (const TaskScore& task : row.metrics.tasks) {
    agree += task.agree;
    all += task.questions;
  }
  return all == 0 ? 0 : 100 * agree / all;
}

double MeanAttentionError(const EvalRow& row, const EvalRow&) {
  double sum = 0;
  for (const double error : row.metrics.attention_error) sum += error;
  return sum / static_cast<double>(std::max<size_t>(row.metrics.attention_error.size(), 1));
}

struct Measure {
  const char* title;
  const char* y_title;
  bool log_y;
  bool at_dense;  // draw the dense cache's value
  double (*value)(const EvalRow& row, const EvalRow& dense);
};

constexpr Measure kTailMeasures[] = {
    {"Change of bits per byte: lower is better", "bits per byte - dense", false, true,
     [](const EvalRow& row, const EvalRow& dense) {
       return row.metrics.tail.bits_per_byte() - dense.metrics.tail.bits_per_byte();
     }},
    {"Divergence from dense: lower is better", "mean KL, nats (log scale)", true, false,
     [](const EvalRow& row, const EvalRow&) { return row.metrics.tail.mean_kl(); }},
    {"Same likeliest token as dense: higher is better", "top-1 agreement, %", false, true,
     [](const EvalRow& row, const EvalRow&) { return 100 * row.metrics.tail.top_agreement(); }},
    {"Error of attention's output: lower is better", "relative error, mean over layers (log scale)",
     true, false, MeanAttentionError},
};

constexpr Measure kRecallMeasures[] = {
    {"Facts recalled (needle, near): higher is better", "answers right, %", false, true,
     FactsRight},
    {"Same answer as dense, all tasks: higher is better", "answers agreeing, %", false, true,
     AnswersAsDense},
};

// What the legend does not tell: of "int4 per channel" the first word, of "published, rescaled to
// peaks" what follows the comma. Archived forms are in the order of their profiles.
std::string LabelOf(const EvalRow& row) {
  if (row.kind == FormKind::kArchived) return "";
  if (row.kind == FormKind::kProfile) return row.name;
  const size_t comma = row.name.find(", ");
  return comma == std::string::npos ? row.name.substr(0, row.name.find(' '))
                                    : row.name.substr(comma + 2);
}

Plot PlotOf(const Measure& measure, const EvalSection& section, const EvalPlan& plan) {
  const EvalRow& dense = section.rows[0];
  Plot plot;
  plot.title = measure.title;
  plot.x_title = "compressed part: times smaller than bf16, headers counted (log scale)";
  plot.y_title = measure.y_title;
  plot.log_y = measure.log_y;
  plot.has_reference = measure.at_dense;
  plot.reference = measure.value(dense, dense);
  plot.reference_label = "dense";
  for (const EvalRow& row : section.rows) {
    if (row.kind == FormKind::kDense) continue;
    PlotPoint point;
    point.x = row.metrics.bytes.compact_ratio();
    point.y = measure.value(row, dense);
    point.mark = MarkOf(row);
    if (row.control_of.empty()) point.label = LabelOf(row);
    point.hover = absl::StrFormat("%s: %.2f x, %.5g", RowTitle(row, plan), point.x, point.y);
    plot.points.push_back(std::move(point));
  }
  return plot;
}

}  // namespace

Mark MarkOf(const EvalRow& row) {
  if (row.kind == FormKind::kProfile) return Mark::kDot;
  if (row.kind == FormKind::kArchived) return Mark::kRing;
  if (absl::StartsWith(row.name, "mean-only")) return Mark::kTriangle;
  if (absl::StartsWith(row.name, "channel PCA")) return Mark::kSquare;
  return absl::StartsWith(row.name, "int") ? Mark::kCross : Mark::kDiamond;
}

std::vector<MarkMeaning> MarksOf(const EvalSection& section) {
  constexpr MarkMeaning kMarks[] = {
      {Mark::kDot, "profile under test, compact"},
      {Mark::kRing, "the same, archived"},
      {Mark::kTriangle, "mean-only, at the profile's bytes"},
      {Mark::kSquare, "channel PCA, at the profile's bytes"},
      {Mark::kCross, "every channel as int4, int3, int2"},
      {Mark::kDiamond, "FourierAttention as published: one segment for the whole sequence"}};
  std::vector<MarkMeaning> shown;
  for (const MarkMeaning& mark : kMarks) {
    const auto stands_there = [&](const EvalRow& row) {
      return row.kind != FormKind::kDense && MarkOf(row) == mark.mark;
    };
    if (std::any_of(section.rows.begin(), section.rows.end(), stands_there)) shown.push_back(mark);
  }
  return shown;
}

std::vector<Plot> EvalPlots(const EvalSection& section, const EvalPlan& plan) {
  std::vector<Plot> plots;
  if (plan.tail_tokens > 0) {
    for (const Measure& measure : kTailMeasures) plots.push_back(PlotOf(measure, section, plan));
  }
  if (!section.rows[0].metrics.tasks.empty()) {
    for (const Measure& measure : kRecallMeasures) plots.push_back(PlotOf(measure, section, plan));
  }
  return plots;
}

}  // namespace fourierkv
