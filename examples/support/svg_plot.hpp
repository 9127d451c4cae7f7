// SPDX-License-Identifier: MIT
// Line charts without a plotting program.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <numeric>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <deq/core/error.hpp>
#include <deq/io/atomic_file.hpp>

#include "text.hpp"

namespace examples {

/// One line of a chart. Points that cannot be drawn (NaN, infinite, not positive on a logarithmic
/// axis) are left out.
struct Series {
  std::string name;
  std::vector<double> x, y;
  int colour = -1;  ///< one of seven, so that a name keeps its own in all charts; -1: in turn
};

/// A line chart. Texts are UTF-8.
struct Plot {
  std::string title = {}, subtitle = {};
  std::string x_label = {}, y_label = {};
  std::vector<Series> series = {};
  bool log_y = false;
  std::vector<double> y_include = {};  ///< values that the y axis has to reach, such as 0 and 1
  int width = 760, height = 440;       ///< CSS pixels
};

namespace detail {

struct Point {
  double x, y;
};

/// A range of numbers and the ticks within it.
class Axis {
 public:
  struct Tick {
    double value;
    std::string label;
  };

  /// Covers `values` exactly; or, with `round`, from tick to tick. About `target` ticks.
  static Axis linear(const std::vector<double>& values, int target, bool round) {
    Axis axis;
    const auto [least, most] = range(values);
    const double size = std::max(std::abs(least), std::abs(most));
    const double pad = most - least > 1e-9 * size ? 0 : std::max(0.5, 0.05 * size);
    axis.low_ = least - pad;
    axis.high_ = most + pad;
    double step = nice_step((axis.high_ - axis.low_) / target);
    const auto whole = [](double v) { return v == std::floor(v); };
    // Half an epoch is not a place on an axis of epochs.
    if (!round && std::all_of(values.begin(), values.end(), whole)) step = std::max(step, 1.0);
    constexpr double slack = 1e-9;
    if (round) {
      axis.low_ = std::floor(axis.low_ / step + slack) * step;
      axis.high_ = std::ceil(axis.high_ / step - slack) * step;
    }
    const double first = std::ceil(axis.low_ / step - slack);
    const double count = std::floor(axis.high_ / step + slack) - first;
    const int decimals = std::max(0, static_cast<int>(-std::floor(std::log10(step) + slack)));
    for (int k = 0; k <= count; ++k) {
      const double value = (first + k) * step;
      axis.ticks_.push_back({value, label(value, decimals)});
    }
    return axis;
  }

  /// Covers `values`, all positive, from tick to tick: powers of ten, and their multiples by 2 and
  /// 5 where the values span at most two of them.
  static Axis logarithmic(const std::vector<double>& values, int target) {
    Axis axis;
    axis.log_ = true;
    const auto [least, most] = values.empty() ? std::pair{1.0, 10.0} : range(values);
    const double decades = std::log10(most) - std::log10(least);
    const std::vector<double> multiples =
        decades > 2 ? std::vector{1.0} : std::vector{1.0, 2.0, 5.0};
    const int first = static_cast<int>(std::floor(std::log10(least)));
    const int last = static_cast<int>(std::ceil(std::log10(most)));
    const bool plain = first >= -3 && last <= 4;
    std::vector<Tick> all;
    for (int power = first; power <= last + 1; ++power)
      for (const double m : multiples)
        all.push_back({m * std::pow(10.0, power), log_label(m, power, plain)});
    constexpr double slack = 1 + 1e-9;
    std::size_t begin = 0, end = 1;
    while (all[begin + 1].value <= least * slack) ++begin;
    while (all[end].value * slack < most || end == begin) ++end;
    axis.low_ = all[begin].value;
    axis.high_ = all[end].value;
    const auto most_ticks = static_cast<std::size_t>(target);
    const std::size_t stride = (end - begin + most_ticks - 1) / most_ticks;
    for (std::size_t i = begin; i <= end; i += stride) axis.ticks_.push_back(all[i]);
    return axis;
  }

  /// Where a value lies: 0 at the axis' beginning, 1 at its end.
  double position(double value) const {
    return log_ ? std::log(value / low_) / std::log(high_ / low_) : (value - low_) / (high_ - low_);
  }
  const std::vector<Tick>& ticks() const { return ticks_; }

 private:
  static std::pair<double, double> range(const std::vector<double>& values) {
    if (values.empty()) return {0.0, 1.0};
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    return {*least, *most};
  }

  /// The smallest of 1, 2, 5, 10 times a power of ten that is not below x.
  static double nice_step(double x) {
    const double power = std::pow(10.0, std::floor(std::log10(x)));
    for (const double m : {1.0, 2.0, 5.0})
      if (m * power >= x * (1 - 1e-9)) return m * power;
    return 10 * power;
  }

  static std::string label(double value, int decimals) {
    if (std::abs(value) >= 1e7 || decimals > 5)
      return with_minus(shortest(static_cast<float>(value)));
    std::string text = fixed(std::abs(value), decimals);
    const std::size_t whole = std::min(text.find('.'), text.size());
    if (whole > 3)
      for (std::size_t i = whole - 3; i > 0 && i < whole; i -= std::min<std::size_t>(i, 3))
        text.insert(i, ",");
    const bool negative = value < 0 && text.find_first_not_of("0.") != std::string::npos;
    return (negative ? "−" : "") + text;
  }
  static std::string log_label(double multiple, int power, bool plain) {
    if (plain) return label(multiple * std::pow(10.0, power), std::max(0, -power));
    static constexpr std::array<std::string_view, 10> superscripts = {"⁰", "¹", "²", "³", "⁴",
                                                                      "⁵", "⁶", "⁷", "⁸", "⁹"};
    std::string text = multiple == 1 ? "10" : fixed(multiple, 0) + "·10";
    if (power < 0) text += "⁻";
    for (const char digit : std::to_string(std::abs(power)))
      text += superscripts[static_cast<std::size_t>(digit - '0')];
    return text;
  }
  static std::string with_minus(const std::string& text) {
    std::string out;
    for (const char c : text) out += c == '-' ? "−" : std::string(1, c);
    return out;
  }

  double low_ = 0, high_ = 1;
  bool log_ = false;
  std::vector<Tick> ticks_;
};

/// Draws one Plot.
class SvgChart {
 public:
  explicit SvgChart(const Plot& plot) : plot_(plot) {
    for (const Series& series : plot.series) {
      deq::require<deq::ShapeError>(series.x.size() == series.y.size(), "svg: series '",
                                    series.name, "' has ", series.x.size(), " x and ",
                                    series.y.size(), " y values");
      const auto own = static_cast<std::size_t>(series.colour);
      lines_.push_back({series.name, {}, series.colour < 0 ? lines_.size() : own});
      for (std::size_t i = 0; i < series.x.size(); ++i)
        if (drawable(series.x[i], false) && drawable(series.y[i], plot.log_y))
          lines_.back().points.push_back({series.x[i], series.y[i]});
    }
    std::erase_if(lines_, [](const Line& line) { return line.points.empty(); });
  }

  std::string draw() {
    const std::string title =
        text_block(plot_.title, 18, 24, "font-weight=\"600\" fill=\"#1b1f24\"");
    const std::string subtitle = text_block(plot_.subtitle, 13, 18, muted);
    set_axes();
    label_at_ends_ = lines_.size() > 1 && labels_fit();
    const std::string legend = lines_.size() > 1 && !label_at_ends_ ? draw_legend() : "";
    place();
    return open() + title + subtitle + legend + draw_axes() + draw_lines() + "</svg>\n";
  }

 private:
  struct Line {
    std::string name;
    std::vector<Point> points;
    std::size_t colour;
  };
  struct Colour {
    const char* line;
    const char* text;  ///< darker, readable as small letters
  };

  /// Okabe and Ito's colours, told apart with any kind of colour vision; without the yellow, which
  /// white paper swallows.
  static constexpr std::array<Colour, 7> palette = {{{"#0072b2", "#005f96"},
                                                     {"#d55e00", "#b04e00"},
                                                     {"#009e73", "#00795a"},
                                                     {"#cc79a7", "#a34d80"},
                                                     {"#4d4d4d", "#333333"},
                                                     {"#e69f00", "#946700"},
                                                     {"#56b4e9", "#2279b0"}}};
  /// Further series repeat the colours, dashed.
  static constexpr std::array<const char*, 3> dashes = {"", " stroke-dasharray=\"7 4\"",
                                                        " stroke-dasharray=\"2 4\""};
  static constexpr const char* muted = "fill=\"#57606a\"";
  static constexpr const char* middle = "fill=\"#57606a\" text-anchor=\"middle\"";
  static constexpr const char* right_aligned = "fill=\"#57606a\" text-anchor=\"end\"";
  static constexpr double margin = 24, small = 12, label_size = 13, label_gap = 17, bold = 1.06;
  static constexpr std::size_t most_marked = 24;   ///< points of a line that are marked one by one
  static constexpr std::size_t many_points = 400;  ///< points that make a line thin

  static bool drawable(double v, bool positive) {
    // Beyond this, the length of an axis could overflow.
    return std::abs(v) <= 1e300 && (!positive || v >= 1e-300);
  }

  static std::string escape(std::string_view text) {
    std::string out;
    for (const char c : text) {
      switch (c) {
        case '&': out += "&amp;"; break;
        case '<': out += "&lt;"; break;
        case '>': out += "&gt;"; break;
        case '"': out += "&quot;"; break;
        default:
          if (static_cast<unsigned char>(c) >= 0x20) out += c;
      }
    }
    return out;
  }

  /// Pixels that a text takes, rather too many: the font is the reader's.
  static double text_width(std::string_view text, double size) {
    double em = 0;
    for (const char c : text) {
      if ((static_cast<unsigned char>(c) & 0xC0) == 0x80) continue;
      const auto is_in = [c](std::string_view letters) { return letters.find(c) != letters.npos; };
      em += is_in("iljtfr.,:;|!'()[] ") ? 0.37
            : is_in("mwMW@%&<>=+")      ? 0.95
            : c >= 'A' && c <= 'Z'      ? 0.7
                                        : 0.61;
    }
    return em * size;
  }

  static std::string attribute(std::string_view name, double value) {
    return std::string(" ").append(name).append("=\"").append(fixed(value, 1)).append("\"");
  }
  static std::string text(double x, double y, double size, std::string_view style,
                          std::string_view content) {
    return "<text" + attribute("x", x) + attribute("y", y) + attribute("font-size", size) + ' ' +
           std::string(style) + '>' + escape(content) + "</text>\n";
  }
  static std::string segment(Point a, Point b, std::string_view style) {
    return "<line" + attribute("x1", a.x) + attribute("y1", a.y) + attribute("x2", b.x) +
           attribute("y2", b.y) + ' ' + std::string(style) + "/>\n";
  }

  std::string open() const {
    const std::string size = std::to_string(plot_.width), high = std::to_string(plot_.height);
    return "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + size + "\" height=\"" + high +
           "\" viewBox=\"0 0 " + size + ' ' + high +
           "\" role=\"img\" font-family=\"Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, "
           "sans-serif\">\n<title>" +
           escape(plot_.title) + "</title>\n<desc>" + escape(plot_.subtitle) +
           "</desc>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
  }

  /// A paragraph from the top edge on, broken at spaces; moves the top edge below it.
  std::string text_block(const std::string& content, double size, double leading,
                         std::string_view style) {
    std::string out, line;
    const auto flush = [&] {
      top_ += leading;
      out += text(margin, top_ - leading / 4, size, style, line);
      line.clear();
    };
    for (std::size_t begin = 0; begin < content.size();) {
      const std::size_t end = std::min(content.find(' ', begin), content.size());
      const std::string word = content.substr(begin, end - begin);
      if (!line.empty() && text_width(line + ' ' + word, size) > plot_.width - 2 * margin) flush();
      line += (line.empty() ? "" : " ") + word;
      begin = end + 1;
    }
    if (!line.empty()) flush();
    return out;
  }

  void set_axes() {
    std::vector<double> x, y;
    for (const double v : plot_.y_include)
      if (drawable(v, plot_.log_y)) y.push_back(v);
    for (const Line& line : lines_)
      for (const Point& p : line.points) {
        x.push_back(p.x);
        y.push_back(p.y);
      }
    x_ = Axis::linear(x, plot_.width / 100, false);
    y_ = plot_.log_y ? Axis::logarithmic(y, 8) : Axis::linear(y, plot_.height / 60, true);
  }

  double widest_label() const {
    double widest = 0;
    for (const Line& line : lines_)
      widest = std::max(widest, text_width(line.name, label_size * bold));
    return widest;
  }
  /// Names can stand at the ends of the lines if all lines end on the right, and there is room.
  bool labels_fit() const {
    const auto ends_right = [this](const Line& line) {
      return x_.position(line.points.back().x) > 0.97;
    };
    return std::all_of(lines_.begin(), lines_.end(), ends_right) &&
           widest_label() < 0.28 * plot_.width &&
           static_cast<double>(lines_.size()) * label_gap < 0.5 * plot_.height;
  }

  std::string draw_legend() {
    std::string out;
    constexpr double swatch = 22, gap = 7, between = 22, leading = 20;
    double x = margin;
    top_ += leading + 4;
    for (const Line& line : lines_) {
      const double width = swatch + gap + text_width(line.name, label_size);
      if (x > margin && x + width > plot_.width - margin) {
        x = margin;
        top_ += leading;
      }
      out += segment({x, top_ - 4.5}, {x + swatch, top_ - 4.5}, stroke(line, 2.5));
      out += text(x + swatch + gap, top_, label_size, "fill=\"#1b1f24\"", line.name);
      x += width + between;
    }
    return out;
  }

  /// The rectangle of the data, from what surrounds it.
  void place() {
    double widest = 0;
    for (const Axis::Tick& tick : y_.ticks())
      widest = std::max(widest, text_width(tick.label, small));
    left_ = margin + widest + 10;
    right_ = plot_.width - margin - (label_at_ends_ ? widest_label() + 16 : 8);
    top_ += plot_.y_label.empty() ? 20 : 44;
    bottom_ = plot_.height - margin - (plot_.x_label.empty() ? 18 : 40);
  }
  Point pixel(Point p) const {
    return {left_ + x_.position(p.x) * (right_ - left_),
            bottom_ - y_.position(p.y) * (bottom_ - top_)};
  }

  std::string draw_axes() const {
    std::string out;
    if (!plot_.y_label.empty()) out += text(margin, top_ - 16, small, muted, plot_.y_label);
    for (const Axis::Tick& tick : y_.ticks()) {
      const double y = bottom_ - y_.position(tick.value) * (bottom_ - top_);
      out += segment({left_, y}, {right_, y}, "stroke=\"#e4e7eb\"");
      out += text(left_ - 10, y + 4, small, right_aligned, tick.label);
    }
    out += segment({left_, bottom_}, {right_, bottom_}, "stroke=\"#8c959f\"");
    for (const Axis::Tick& tick : x_.ticks()) {
      const double x = left_ + x_.position(tick.value) * (right_ - left_);
      out += segment({x, bottom_}, {x, bottom_ + 5}, "stroke=\"#8c959f\"");
      out += text(x, bottom_ + 20, small, middle, tick.label);
    }
    if (!plot_.x_label.empty())
      out += text((left_ + right_) / 2, bottom_ + 43, small, middle, plot_.x_label);
    if (lines_.empty())
      out += text((left_ + right_) / 2, (top_ + bottom_) / 2, label_size, middle, "no data");
    return out;
  }

  static const Colour& colour(const Line& line) { return palette[line.colour % palette.size()]; }
  static std::string stroke(const Line& line, double width) {
    return std::string("fill=\"none\" stroke=\"") + colour(line).line + "\" stroke-width=\"" +
           fixed(width, 2) + "\" stroke-linejoin=\"round\" stroke-linecap=\"round\"" +
           dashes[line.colour / palette.size() % dashes.size()];
  }
  static std::string dot(Point p, double radius, const char* fill) {
    return "<circle" + attribute("cx", p.x) + attribute("cy", p.y) + attribute("r", radius) +
           " fill=\"" + fill + "\" stroke=\"#ffffff\" stroke-width=\"1.5\"/>\n";
  }

  /// The line as pixels. Of the points in one column of pixels, as a long log has many, only those
  /// that can be seen: the first, the lowest, the highest and the last.
  std::vector<Point> thinned(const Line& line) const {
    std::vector<Point> all, seen;
    for (const Point& p : line.points) all.push_back(pixel(p));
    for (std::size_t begin = 0, end = 0; begin < all.size(); begin = end) {
      while (end < all.size() && std::floor(all[end].x) == std::floor(all[begin].x)) ++end;
      const auto [low, high] =
          std::minmax_element(all.begin() + static_cast<std::ptrdiff_t>(begin),
                              all.begin() + static_cast<std::ptrdiff_t>(end),
                              [](const Point& a, const Point& b) { return a.y < b.y; });
      std::array<std::size_t, 4> keep = {begin, static_cast<std::size_t>(low - all.begin()),
                                         static_cast<std::size_t>(high - all.begin()), end - 1};
      std::sort(keep.begin(), keep.end());
      const auto last = std::unique(keep.begin(), keep.end());
      for (auto i = keep.begin(); i != last; ++i) seen.push_back(all[*i]);
    }
    return seen;
  }

  std::string draw_lines() const {
    std::string out;
    for (const Line& line : lines_) {
      std::string path, dots;
      for (const Point& p : thinned(line)) {
        path += (path.empty() ? "M" : " L") + fixed(p.x, 1) + ' ' + fixed(p.y, 1);
        if (line.points.size() <= most_marked) dots += dot(p, 3.5, colour(line).line);
      }
      const double width = line.points.size() > many_points ? 1.25 : 2.25;
      out += "<path d=\"" + path + "\" " + stroke(line, width) + "/>\n" + dots;
    }
    for (const Line& line : lines_) out += dot(pixel(line.points.back()), 4.5, colour(line).line);
    return label_at_ends_ ? out + draw_labels() : out;
  }

  /// The names beside the ends of their lines, in the lines' order, moved as little as keeps them
  /// apart (isotonic regression by pooling adjacent violators).
  std::string draw_labels() const {
    std::vector<std::size_t> order(lines_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto end_of = [this](std::size_t i) { return pixel(lines_[i].points.back()); };
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return end_of(a).y < end_of(b).y; });
    struct Pool {
      double sum;  ///< of y - k gap over the labels k in it
      int count;
      double mean() const { return sum / count; }
    };
    std::vector<Pool> pools;
    for (std::size_t k = 0; k < order.size(); ++k) {
      pools.push_back({end_of(order[k]).y - static_cast<double>(k) * label_gap, 1});
      while (pools.size() > 1 && pools[pools.size() - 2].mean() > pools.back().mean()) {
        const Pool below = pools.back();
        pools.pop_back();
        pools.back().sum += below.sum;
        pools.back().count += below.count;
      }
    }
    std::string out;
    std::size_t k = 0;
    const double lowest = bottom_ - static_cast<double>(order.size() - 1) * label_gap;
    for (const Pool& pool : pools) {
      for (int j = 0; j < pool.count; ++j, ++k) {
        const Line& line = lines_[order[k]];
        const double y = std::clamp(pool.mean(), top_, std::max(top_, lowest)) +
                         static_cast<double>(k) * label_gap;
        const Point end = end_of(order[k]);
        if (std::abs(y - end.y) > 4)
          out +=
              segment({end.x + 5, end.y}, {right_ + 13, y},
                      std::string("stroke=\"") + colour(line).line + "\" stroke-opacity=\"0.5\"");
        out +=
            text(right_ + 15, y + 4.5, label_size,
                 std::string("font-weight=\"600\" fill=\"") + colour(line).text + '"', line.name);
      }
    }
    return out;
  }

  const Plot& plot_;
  std::vector<Line> lines_;
  Axis x_, y_;
  bool label_at_ends_ = false;
  double left_ = 0, right_ = 0, top_ = 16, bottom_ = 0;
};

}  // namespace detail

/// The chart as an SVG document: names at the ends of the lines where that fits, else a legend; the
/// name of a single series is left to the title.
/// Throws deq::ShapeError if a series has not as many x as y values.
inline std::string svg(const Plot& plot) { return detail::SvgChart(plot).draw(); }

/// Writes svg(plot) to a file, at once or not at all. Throws deq::IoError if it cannot be written.
inline void write_svg(const std::filesystem::path& path, const Plot& plot) {
  deq::write_file_atomically(path, [&](std::ostream& out) { out << svg(plot); });
}

}  // namespace examples
