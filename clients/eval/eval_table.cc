#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "clients/eval/eval_cells.h"
#include "clients/eval/eval_output.h"

namespace fourierkv {
namespace {

std::string Ratio(double ratio) { return absl::StrFormat("%.2f", ratio); }

std::string RecallCell(RecallTask task, const FormMetrics& metrics) {
  for (const TaskScore& score : metrics.tasks) {
    if (score.task != task) continue;
    if (task == RecallTask::kCopy) {
      return absl::StrFormat("%d/%d =%d", score.tokens_right, score.answer_tokens,
                             score.tokens_agree);
    }
    return absl::StrFormat("%d/%d =%d", score.right, score.questions, score.agree);
  }
  return "-";
}

double Margin(const FormMetrics& metrics) {
  double margin = 0;
  bool any = false;
  for (const TaskScore& score : metrics.tasks) {
    if (score.task != RecallTask::kNeedle && score.task != RecallTask::kNear) continue;
    margin = any ? std::min(margin, score.smallest_margin) : score.smallest_margin;
    any = true;
  }
  return margin;
}

bool Asks(const EvalPlan& plan, RecallTask task) {
  return plan.questions > 0 &&
         std::find(plan.tasks.begin(), plan.tasks.end(), task) != plan.tasks.end();
}

}  // namespace

std::vector<EvalColumn> EvalColumns(const EvalPlan& plan) {
  std::vector<EvalColumn> columns = {
      {"bits", "payload bits per element of the compressed part"},
      {"payload x", "how many times smaller than bf16 the compressed part is, payload alone"},
      {"part x", "the same with its headers"},
      {"cache x", "the same for the whole cache, with the exact sink and recent window"}};
  constexpr const char* kMeanings[] = {
      "questions answered exactly by greedy decoding, of all; =: as the dense cache answers",
      "the same for groups of names that differ in one letter",
      "the same for names with several numbers, of which any is right",
      "the same, but only the number stated last is right",
      "bytes of repeated passages predicted right, of all; =: as the dense cache predicts"};
  for (const RecallTask task : kRecallTasks) {
    if (Asks(plan, task)) columns.push_back({TaskName(task), kMeanings[static_cast<int>(task)]});
  }
  if (Asks(plan, RecallTask::kNeedle) || Asks(plan, RecallTask::kNear)) {
    columns.push_back({"margin",
                       "over all digits of needle and near: smallest distance of the "
                       "right one's logit to the next"});
  }
  if (plan.tail_tokens > 0) {
    columns.push_back({"bpb", "bits per byte of the text behind the context"});
    columns.push_back({"bpb +-", "its change against the dense cache"});
    columns.push_back({"KL", "divergence from the dense cache's predictions there, nats, mean"});
    columns.push_back({"KL p99", "what 99% of tokens do not exceed"});
    columns.push_back({"top-1", "tokens there whose likeliest successor is the dense cache's"});
    columns.push_back({"attention",
                       "relative error of attention's output for the same queries, "
                       "mean over layers / worst layer"});
  }
  return columns;
}

std::vector<std::string> EvalCells(const EvalPlan& plan, const EvalRow& row, const EvalRow& dense) {
  const FormMetrics& m = row.metrics;
  std::vector<std::string> cells = {absl::StrFormat("%.3f", m.bytes.bits_per_element()),
                                    Ratio(m.bytes.payload_ratio()), Ratio(m.bytes.compact_ratio()),
                                    Ratio(m.bytes.whole_ratio())};
  for (const RecallTask task : kRecallTasks) {
    if (Asks(plan, task)) cells.push_back(RecallCell(task, m));
  }
  if (Asks(plan, RecallTask::kNeedle) || Asks(plan, RecallTask::kNear)) {
    cells.push_back(absl::StrFormat("%.2f", Margin(m)));
  }
  if (plan.tail_tokens > 0) {
    const double bpb = m.tail.bits_per_byte();
    cells.push_back(absl::StrFormat("%.4f", bpb));
    cells.push_back(absl::StrFormat("%+.4f", bpb - dense.metrics.tail.bits_per_byte()));
    cells.push_back(absl::StrFormat("%.5f", m.tail.mean_kl()));
    cells.push_back(absl::StrFormat("%.4f", m.tail.kl_quantile(0.99)));
    cells.push_back(absl::StrFormat("%.2f%%", 100 * m.tail.top_agreement()));
    double mean = 0, worst = 0;
    for (const double error : m.attention_error) {
      mean += error / static_cast<double>(m.attention_error.size());
      worst = std::max(worst, error);
    }
    cells.push_back(absl::StrFormat("%.3f / %.3f", mean, worst));
  }
  return cells;
}

std::string RowTitle(const EvalRow& row, const EvalPlan& plan) {
  if (row.control_of.empty() || plan.profiles.size() < 2) return row.name;
  return absl::StrCat(row.name, " @ ", row.control_of);
}

std::string EvalTable(const EvalSource& source, const EvalResult& result) {
  const EvalPlan& plan = result.plan;
  const std::vector<EvalColumn> columns = EvalColumns(plan);
  std::string text = absl::StrCat("model  ", source.model, "  sha256 ", source.model_sha256,
                                  "\ntext   ", source.text, "  sha256 ", source.text_sha256, "\n");
  for (const EvalSection& section : result.sections) {
    absl::StrAppend(&text, "\ncontext ", section.context_tokens, " tokens, recent window ",
                    plan.recent_window, ", seeds ", absl::StrJoin(plan.seeds, " "), "\n");
    std::vector<std::vector<std::string>> lines(1, {"form"});
    for (const EvalColumn& column : columns) lines[0].push_back(column.title);
    int decoded = 0, agree = 0;
    for (const EvalRow& row : section.rows) {
      lines.push_back({RowTitle(row, plan)});
      for (std::string& cell : EvalCells(plan, row, section.rows[0])) {
        lines.back().push_back(std::move(cell));
      }
      decoded += row.metrics.decoded;
      agree += row.metrics.decoded_agree;
    }
    std::vector<size_t> widths(lines[0].size(), 0);
    for (const auto& line : lines) {
      for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
    }
    for (const auto& line : lines) {
      absl::StrAppend(&text, line[0], std::string(widths[0] - line[0].size(), ' '));
      for (size_t i = 1; i < line.size(); ++i) {
        absl::StrAppend(&text, "  ", std::string(widths[i] - line[i].size(), ' '), line[i]);
      }
      absl::StrAppend(&text, "\n");
    }
    absl::StrAppend(&text, "decoded token by token as a decode worker does: ", agree, " of ",
                    decoded, " answers are what the table says\n");
  }
  absl::StrAppend(&text, "\n");
  for (const EvalColumn& column : columns) {
    absl::StrAppend(&text, absl::StrFormat("  %-10s %s\n", column.title, column.meaning));
  }
  if (plan.controls) {
    absl::StrAppend(&text, "controls were calibrated on ",
                    source.calibration.empty() ? "the evaluated text itself" : source.calibration,
                    "\n");
  }
  return text;
}

}  // namespace fourierkv
