#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "clients/eval/eval_cells.h"
#include "clients/eval/eval_output.h"

namespace fourierkv {
namespace {

void AppendLine(const std::vector<std::string>& cells, std::string* text) {
  absl::StrAppend(text, "| ", absl::StrJoin(cells, " | "), " |\n");
}

void AppendSource(const EvalSource& source, std::string* text) {
  const auto line = [text](absl::string_view what, const std::string& sha256) {
    if (!sha256.empty()) absl::StrAppend(text, "| ", what, " | `", sha256, "` |\n");
  };
  absl::StrAppend(text, "| | SHA-256 |\n|---|---|\n");
  line("model", source.model_sha256);
  line("text", source.text_sha256);
  line("text that controls were calibrated on", source.calibration_sha256);
}

}  // namespace

std::string EvalMarkdown(const EvalSource& source, const EvalResult& result) {
  const EvalPlan& plan = result.plan;
  std::string text;
  AppendSource(source, &text);
  std::vector<std::string> titles = {"form"};
  for (const EvalColumn& column : EvalColumns(plan)) titles.push_back(column.title);
  for (const EvalSection& section : result.sections) {
    absl::StrAppend(&text, "\nContexts of ", section.context_tokens, " tokens, seeds ",
                    absl::StrJoin(plan.seeds, ", "), ", recent window ", plan.recent_window,
                    "\n\n");
    AppendLine(titles, &text);
    AppendLine(std::vector<std::string>(titles.size(), "---"), &text);
    int decoded = 0, agree = 0;
    for (const EvalRow& row : section.rows) {
      std::vector<std::string> cells = EvalCells(plan, row, section.rows[0]);
      cells.insert(cells.begin(), RowTitle(row, plan));
      if (IsUnderTest(row)) cells[0] = absl::StrCat("**", cells[0], "**");
      AppendLine(cells, &text);
      decoded += row.metrics.decoded;
      agree += row.metrics.decoded_agree;
    }
    absl::StrAppend(&text, "\nDecoded token by token as a decode worker does: ", agree, " of ",
                    decoded, " answers are what the table says.\n");
  }
  return text;
}

}  // namespace fourierkv
