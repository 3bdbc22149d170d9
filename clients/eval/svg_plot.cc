#include "clients/eval/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace fourierkv {
namespace {

constexpr double kWidth = 460, kHeight = 320;
constexpr double kLeft = 58, kRight = 444, kTop = 34, kBottom = 268;
constexpr double kCharacter = 6.1, kLine = 12;  // of a label's text

struct Box {
  double left, top, right, bottom;
  bool Overlaps(const Box& o) const {
    return left < o.right && o.left < right && top < o.bottom && o.top < bottom;
  }
};

// Maps values to pixels and chooses ticks.
class Axis {
 public:
  Axis(double low, double high, bool log, double from, double to)
      : log_(log), from_(from), to_(to) {
    if (log_) {
      low_ = std::log2(low) - 0.15;
      high_ = std::log2(high) + 0.15;
      if (high_ - low_ < 1) low_ -= 0.5, high_ += 0.5;
    } else {
      const double room = high > low ? 0.08 * (high - low) : std::max(std::abs(high) * 0.1, 1e-3);
      low_ = low - room;
      high_ = high + room;
    }
  }

  double At(double value) const {
    const double v = log_ ? (value > 0 ? std::log2(value) : low_) : value;
    return from_ + (std::clamp(v, low_, high_) - low_) / (high_ - low_) * (to_ - from_);
  }

  std::vector<double> Ticks() const {
    std::vector<double> ticks;
    if (!log_) {
      const double step = NiceStep((high_ - low_) / 5);
      for (double i = std::ceil(low_ / step); i * step <= high_; ++i) ticks.push_back(i * step);
      return ticks;
    }
    const double span = high_ - low_;
    if (span > 10) {  // decades
      for (double e = std::ceil(low_ * std::log10(2.0)); std::exp2(high_) >= std::pow(10, e); ++e) {
        ticks.push_back(std::pow(10, e));
      }
      return ticks;
    }
    for (int decade = -9; decade < 9; ++decade) {
      for (const double digit :
           span > 3 ? std::vector<double>{1, 2, 5} : std::vector<double>{1, 1.5, 2, 3, 4, 6, 8}) {
        const double value = digit * std::pow(10, decade);
        if (std::log2(value) >= low_ && std::log2(value) <= high_) ticks.push_back(value);
      }
    }
    return ticks;
  }

 private:
  static double NiceStep(double least) {
    const double power = std::pow(10, std::floor(std::log10(least)));
    for (const double digit : {1.0, 2.0, 5.0}) {
      if (digit * power >= least) return digit * power;
    }
    return 10 * power;
  }

  bool log_;
  double from_, to_, low_, high_;
};

std::string Number(double value) {
  if (std::abs(value) < 1e-12) return "0";
  return absl::StrFormat("%.3g", value);
}

std::string Text(double x, double y, const char* style, const std::string& text) {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%s</text>\n", x, y, style,
                         EscapeHtml(text));
}

std::string Line(double x1, double y1, double x2, double y2, const char* style) {
  return absl::StrFormat("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n",
                         x1, y1, x2, y2, style);
}

Axis AxisOver(const std::vector<double>& values, bool log, double from, double to) {
  double low = INFINITY, high = -INFINITY;
  for (const double value : values) {
    if (log && value <= 0) continue;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  if (low > high) low = high = log ? 1 : 0;
  return Axis(low, high, log, from, to);
}

// Places for texts where they cover neither a mark nor each other.
class FreeSpace {
 public:
  FreeSpace(const Plot& plot, const Axis& x, const Axis& y) {
    for (const PlotPoint& point : plot.points) {
      const double px = x.At(point.x), py = y.At(point.y);
      taken_.push_back({px - 6, py - 6, px + 6, py + 6});
    }
  }

  // `text` at the first of `corners` (left, top) that is free, or nothing.
  std::string Place(const std::string& text,
                    const std::vector<std::pair<double, double>>& corners) {
    const double width = kCharacter * static_cast<double>(text.size());
    for (const auto& [left, top] : corners) {
      const Box box = {left, top, left + width, top + kLine};
      const bool inside =
          box.left >= kLeft && box.right <= kWidth && box.top >= kTop - 14 && box.bottom <= kBottom;
      if (!inside || std::any_of(taken_.begin(), taken_.end(),
                                 [&](const Box& other) { return box.Overlaps(other); })) {
        continue;
      }
      taken_.push_back(box);
      return Text(left, top + kLine - 2.5, "label", text);
    }
    return "";
  }

 private:
  std::vector<Box> taken_;
};

std::string Labels(const Plot& plot, const Axis& x, const Axis& y) {
  FreeSpace space(plot, x, y);
  std::string svg;
  if (plot.has_reference) {
    const double at = y.At(plot.reference);
    const double right = kRight - kCharacter * static_cast<double>(plot.reference_label.size());
    svg += space.Place(plot.reference_label, {{kLeft + 5, at - 13},
                                              {right, at - 13},
                                              {(kLeft + right) / 2, at - 13},
                                              {kLeft + 5, at + 2},
                                              {right, at + 2}});
  }
  for (const PlotPoint& point : plot.points) {
    if (point.label.empty()) continue;
    const double px = x.At(point.x), py = y.At(point.y);
    const double width = kCharacter * static_cast<double>(point.label.size());
    svg += space.Place(point.label, {{px + 9, py - 6},
                                     {px - 9 - width, py - 6},
                                     {px - width / 2, py - 21},
                                     {px - width / 2, py + 9},
                                     {px + 7, py - 18},
                                     {px + 7, py + 6},
                                     {px - 7 - width, py - 18},
                                     {px - 7 - width, py + 6}});
  }
  return svg;
}

}  // namespace

std::string EscapeHtml(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
    }
  }
  return escaped;
}

std::string MarkSvg(Mark mark, double x, double y) {
  switch (mark) {
    case Mark::kDot:
      return absl::StrFormat("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"5\" class=\"dot\"/>", x, y);
    case Mark::kRing:
      return absl::StrFormat("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\" class=\"ring\"/>", x, y);
    case Mark::kTriangle:
      return absl::StrFormat("<path d=\"M%.1f %.1f l5.5 9.5 h-11 z\" class=\"triangle\"/>", x,
                             y - 6);
    case Mark::kSquare:
      return absl::StrFormat(
          "<rect x=\"%.1f\" y=\"%.1f\" width=\"9\" height=\"9\" class=\"square\"/>", x - 4.5,
          y - 4.5);
    case Mark::kCross:
      return absl::StrFormat("<path d=\"M%.1f %.1f l9 9 m0 -9 l-9 9\" class=\"cross\"/>", x - 4.5,
                             y - 4.5);
    case Mark::kDiamond:
      break;
  }
  return absl::StrFormat("<path d=\"M%.1f %.1f l6 6.5 l-6 6.5 l-6 -6.5 z\" class=\"diamond\"/>", x,
                         y - 6.5);
}

std::string PlotSvg(const Plot& plot) {
  std::vector<double> xs, ys;
  for (const PlotPoint& point : plot.points) {
    xs.push_back(point.x);
    ys.push_back(point.y);
  }
  if (plot.has_reference) ys.push_back(plot.reference);
  const Axis x = AxisOver(xs, /*log=*/true, kLeft, kRight);
  const Axis y = AxisOver(ys, plot.log_y, kBottom, kTop);

  std::string svg =
      absl::StrFormat("<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"%s\">\n", kWidth,
                      kHeight, EscapeHtml(plot.title));
  svg += Text(kLeft, 18, "title", plot.title);
  for (const double tick : x.Ticks()) {
    svg += Line(x.At(tick), kTop, x.At(tick), kBottom, "grid");
    svg += Text(x.At(tick), kBottom + 16, "x tick", Number(tick));
  }
  for (const double tick : y.Ticks()) {
    svg += Line(kLeft, y.At(tick), kRight, y.At(tick), "grid");
    svg += Text(kLeft - 6, y.At(tick) + 4, "y tick", Number(tick));
  }
  svg += Line(kLeft, kBottom, kRight, kBottom, "axis");
  svg += Line(kLeft, kTop, kLeft, kBottom, "axis");
  svg += Text((kLeft + kRight) / 2, kHeight - 16, "x axis-title", plot.x_title);
  svg += absl::StrFormat(
      "<text transform=\"translate(13 %.1f) rotate(-90)\" class=\"x axis-title\">%s</text>\n",
      (kTop + kBottom) / 2, EscapeHtml(plot.y_title));
  if (plot.has_reference) {
    const double at = y.At(plot.reference);
    svg += Line(kLeft, at, kRight, at, "reference");
  }
  for (const PlotPoint& point : plot.points) {
    svg += absl::StrCat("<g>", MarkSvg(point.mark, x.At(point.x), y.At(point.y)), "<title>",
                        EscapeHtml(point.hover), "</title></g>\n");
  }
  svg += Labels(plot, x, y);
  return svg + "</svg>\n";
}

}  // namespace fourierkv
