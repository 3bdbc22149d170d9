// Scatter plots as SVG: a ratio across (log scale), a measure up.

#pragma once

#include <string>
#include <vector>

namespace fourierkv {

// Told apart by shape as well as by colour (Okabe and Ito's palette, for colour-blind readers).
enum class Mark { kDot, kRing, kTriangle, kSquare, kCross, kDiamond };

// An SVG fragment: the mark at (x, y).
std::string MarkSvg(Mark mark, double x, double y);

struct PlotPoint {
  double x = 0;  // > 0
  double y = 0;
  Mark mark = Mark::kDot;
  std::string label;  // beside the mark; may be empty
  std::string hover;
};

struct Plot {
  std::string title;
  std::string x_title;
  std::string y_title;
  bool log_y = false;  // values <= 0 are drawn at the bottom
  std::vector<PlotPoint> points;
  // A dashed line across at the dense cache's value.
  bool has_reference = false;
  double reference = 0;
  std::string reference_label;
};

// <svg> of 460 x 320 units that scales with its container. Texts are escaped. Uses the classes and
// variables of the page that EvalHtml writes.
std::string PlotSvg(const Plot& plot);

std::string EscapeHtml(const std::string& text);

}  // namespace fourierkv
