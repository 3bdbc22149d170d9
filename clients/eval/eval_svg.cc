#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "clients/eval/eval_output.h"
#include "clients/eval/eval_plots.h"
#include "clients/eval/svg_plot.h"

namespace fourierkv {
namespace {

constexpr int kPlotWidth = 460, kPlotHeight = 320, kGap = 20, kLegendLine = 20;

// One image for paper and screens, so colours are fixed.
constexpr char kStyle[] = R"(
text { fill: #1c2430; font: 11px system-ui, "DejaVu Sans", sans-serif; }
.title { font-size: 13px; font-weight: 600; } .tick, .axis-title { fill: #5b6675; }
.x { text-anchor: middle; } .y { text-anchor: end; }
.label { font-size: 10.5px; stroke: #fff; stroke-width: 3px; paint-order: stroke; }
.grid { stroke: #d9dee5; stroke-width: .7; } .axis { stroke: #5b6675; }
.reference { stroke: #5b6675; stroke-dasharray: 5 4; }
.dot { fill: #0072b2; stroke: #fff; } .ring { fill: #fff; stroke: #0072b2; stroke-width: 2; }
.triangle, .square, .diamond, .cross { fill: none; stroke-width: 1.8; }
.triangle { stroke: #b85c00; } .square { stroke: #00795c; } .cross { stroke: #a8487f; }
.diamond { stroke: #1c2430; }
)";

}  // namespace

std::string EvalSvg(const EvalResult& result) {
  std::string body;
  int top = 0, widest = 1;
  for (const EvalSection& section : result.sections) {
    const std::vector<Plot> plots = EvalPlots(section, result.plan);
    absl::StrAppend(&body, "<text class=\"title\" x=\"4\" y=\"", top + 18, "\">Contexts of ",
                    section.context_tokens, " tokens</text>\n");
    top += 30;
    for (const MarkMeaning& mark : MarksOf(section)) {
      absl::StrAppend(
          &body, MarkSvg(mark.mark, 12, top + 4),
          absl::StrFormat("<text x=\"26\" y=\"%d\">%s</text>\n", top + 8, mark.meaning));
      top += kLegendLine;
    }
    for (size_t i = 0; i < plots.size(); ++i) {
      const int column = static_cast<int>(i % 2);
      widest = std::max(widest, column + 1);
      const std::string plot = PlotSvg(plots[i]);
      absl::StrAppend(&body,
                      absl::StrFormat("<svg x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" ",
                                      column * (kPlotWidth + kGap), top, kPlotWidth, kPlotHeight),
                      std::string(absl::StripPrefix(plot, "<svg ")));
      if (column == 1 || i + 1 == plots.size()) top += kPlotHeight + kGap;
    }
  }
  const int width = widest * (kPlotWidth + kGap);
  return absl::StrCat("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ", width, " ", top,
                      "\" width=\"", width, "\">\n<style>", kStyle,
                      "</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n", body,
                      "</svg>\n");
}

}  // namespace fourierkv
