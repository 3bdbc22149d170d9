#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "clients/eval/eval_cells.h"
#include "clients/eval/eval_output.h"
#include "clients/eval/eval_plots.h"
#include "clients/eval/svg_plot.h"

namespace fourierkv {
namespace {

constexpr char kStyle[] = R"(
:root { --ink: #1c2430; --soft: #5b6675; --line: #d9dee5; --paper: #fff; --band: #f5f7fa;
  --ours: #0072b2; --mean: #b85c00; --pca: #00795c; --int: #a8487f; --paper-mark: #1c2430; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #38424f; --paper: #151a21; --band: #1c232c;
    --ours: #56b4e9; --mean: #e69f00; --pca: #2fc39b; --int: #dd8fb9; --paper-mark: #e6e9ee; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 92rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { max-width: 52rem; } .soft, footer { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; margin: 1rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: .87em ui-monospace, "DejaVu Sans Mono", monospace; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1rem; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.6rem; margin: .6rem 0 1rem; }
.legend span { display: inline-flex; align-items: center; gap: .4rem; }
.legend svg { width: 18px; height: 18px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
thead th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
tr.profile td { background: var(--band); font-weight: 600; }
td svg { width: 14px; height: 14px; vertical-align: -2px; margin-right: .4rem; }
svg text { fill: var(--ink); font: 11px system-ui, "DejaVu Sans", sans-serif; }
svg .title { font-size: 13px; font-weight: 600; } svg .tick, svg .axis-title { fill: var(--soft); }
svg .x { text-anchor: middle; } svg .y { text-anchor: end; } svg .label { font-size: 10.5px;
  stroke: var(--paper); stroke-width: 3px; paint-order: stroke; }
.grid { stroke: var(--line); stroke-width: .7; } .axis { stroke: var(--soft); }
.reference { stroke: var(--soft); stroke-dasharray: 5 4; }
.dot { fill: var(--ours); stroke: var(--paper); }
.ring { fill: var(--paper); stroke: var(--ours); stroke-width: 2; } .triangle, .square, .diamond, .cross {
  fill: none; stroke-width: 1.8; }
.triangle { stroke: var(--mean); } .square { stroke: var(--pca); } .cross { stroke: var(--int); }
.diamond { stroke: var(--paper-mark); }
@media print { body { max-width: none; padding: 0; } .plots { break-inside: avoid; } }
)";

std::string MarkIcon(Mark mark) {
  return absl::StrCat("<svg viewBox=\"0 0 18 18\" aria-hidden=\"true\">", MarkSvg(mark, 9, 9),
                      "</svg>");
}

std::string Legend(const EvalSection& section) {
  std::string html = "<div class=\"legend\">";
  for (const MarkMeaning& shown : MarksOf(section)) {
    absl::StrAppend(&html, "<span>", MarkIcon(shown.mark), shown.meaning, "</span>");
  }
  return html + "</div>\n";
}

std::string Tag(const char* tag, const std::string& text) {
  return absl::StrCat("<", tag, ">", EscapeHtml(text), "</", tag, ">");
}

std::string OpenRow(const EvalRow& row, const EvalPlan& plan) {
  const bool dense = row.kind == FormKind::kDense;
  return absl::StrCat(IsUnderTest(row) ? "<tr class=\"profile\">" : "<tr>", "<td>",
                      dense ? "" : MarkIcon(MarkOf(row)), EscapeHtml(RowTitle(row, plan)), "</td>");
}

std::string MainTable(const EvalSection& section, const EvalPlan& plan) {
  std::string html = "<div class=\"scroll\"><table><thead><tr><th>form</th>";
  for (const EvalColumn& column : EvalColumns(plan)) {
    absl::StrAppend(&html, "<th title=\"", EscapeHtml(column.meaning), "\">",
                    EscapeHtml(column.title), "</th>");
  }
  absl::StrAppend(&html, "</tr></thead><tbody>\n");
  for (const EvalRow& row : section.rows) {
    absl::StrAppend(&html, OpenRow(row, plan));
    for (const std::string& cell : EvalCells(plan, row, section.rows[0])) {
      absl::StrAppend(&html, Tag("td", cell));
    }
    absl::StrAppend(&html, "</tr>\n");
  }
  return html + "</tbody></table></div>\n";
}

std::string AttentionTable(const EvalSection& section, const EvalPlan& plan) {
  const size_t layers = section.rows[0].metrics.attention_error.size();
  if (layers == 0) return "";
  std::string html =
      "<details><summary>Relative error of attention's output, layer by layer</summary>"
      "<div class=\"scroll\"><table><thead><tr><th>form</th>";
  for (size_t l = 0; l < layers; ++l) absl::StrAppend(&html, "<th>", l, "</th>");
  absl::StrAppend(&html, "</tr></thead><tbody>\n");
  for (const EvalRow& row : section.rows) {
    if (row.kind == FormKind::kDense) continue;
    absl::StrAppend(&html, OpenRow(row, plan));
    for (const double error : row.metrics.attention_error) {
      absl::StrAppend(&html, Tag("td", absl::StrFormat("%.4f", error)));
    }
    absl::StrAppend(&html, "</tr>\n");
  }
  return html + "</tbody></table></div></details>\n";
}

std::string Facts(const EvalSource& source, const EvalPlan& plan) {
  std::string html = "<dl>";
  const auto add = [&](const char* term, const std::string& value) {
    absl::StrAppend(&html, Tag("dt", term), "<dd>", value, "</dd>");
  };
  const auto hashed = [](const std::string& name, const std::string& hash) {
    return absl::StrCat(EscapeHtml(name), " <code class=\"soft\">sha256 ", hash, "</code>");
  };
  add("model", hashed(source.model, source.model_sha256));
  add("text", hashed(source.text, source.text_sha256));
  if (plan.controls) {
    add("controls calibrated on", source.calibration.empty()
                                      ? "the evaluated text itself, which can only flatter them"
                                      : hashed(source.calibration, source.calibration_sha256));
  }
  add("seeds", absl::StrJoin(plan.seeds, ", "));
  add("recent window", absl::StrCat(plan.recent_window, " tokens"));
  add("questions", absl::StrCat(plan.questions, " per task, context and seed"));
  add("text behind each context", absl::StrCat(plan.tail_tokens, " tokens"));
  add("computed by", EscapeHtml(absl::StrCat("fourierkv ", source.version, ", ", source.backend)));
  return html + "</dl>\n";
}

}  // namespace

std::string EvalHtml(const EvalSource& source, const EvalResult& result) {
  const EvalPlan& plan = result.plan;
  std::string html = absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
      "<title>FourierKV: quality of compact caches</title><style>",
      kStyle, "</style></head><body>\n<h1>Quality of compact KV caches</h1>\n",
      "<p class=\"soft\">What a model does with a compressed cache, against the same model with "
      "the "
      "dense one.</p>\n",
      Facts(source, plan));
  int decoded = 0, agree = 0;
  for (const EvalSection& section : result.sections) {
    absl::StrAppend(&html, "<h2>Contexts of ", section.context_tokens, " tokens</h2>\n",
                    Legend(section), "<div class=\"plots\">\n");
    for (const Plot& plot : EvalPlots(section, plan)) absl::StrAppend(&html, PlotSvg(plot));
    absl::StrAppend(&html, "</div>\n", MainTable(section, plan), AttentionTable(section, plan));
    for (const EvalRow& row : section.rows) {
      decoded += row.metrics.decoded;
      agree += row.metrics.decoded_agree;
    }
  }
  absl::StrAppend(&html, "<h2>What the columns mean</h2>\n<dl>");
  for (const EvalColumn& column : EvalColumns(plan)) {
    absl::StrAppend(&html, Tag("dt", column.title), Tag("dd", column.meaning));
  }
  absl::StrAppend(
      &html,
      "</dl>\n<p>Answers are judged by teacher forcing, each as if it were the only one: "
      "greedy decoding gives an answer exactly if each of its tokens is the likeliest "
      "one. Decoded token by token, as a decode worker does, ",
      agree, " of ", decoded, " sampled answers were what the tables say.</p>\n");
  return html + "</body></html>\n";
}

}  // namespace fourierkv
