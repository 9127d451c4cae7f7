// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <deq/core/error.hpp>

#include "text.hpp"

namespace examples {

/// A table of texts with aligned columns: the first column to the left, the others, which hold
/// numbers, to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}

  /// Throws deq::ShapeError unless there is one cell a column.
  void row(std::vector<std::string> cells) {
    deq::require<deq::ShapeError>(cells.size() == header_.size(), "Table: a row needs ",
                                  header_.size(), " cells, got ", cells.size());
    rows_.push_back(std::move(cells));
  }

  /// For a terminal: two spaces between the columns, a line below the header.
  std::string text() const {
    const std::vector<int> widths = column_widths(header_, rows_);
    std::vector<std::string> rules;
    for (const int width : widths) rules.push_back(repeat("-", width));
    std::string out = line(header_, widths, "", "  ", "") + line(rules, widths, "", "  ", "");
    for (const Cells& cells : rows_) out += line(cells, widths, "", "  ", "");
    return out;
  }

  /// For a page: GitHub's Markdown, readable as it is.
  std::string markdown() const {
    const Cells header = escaped(header_);
    std::vector<Cells> rows;
    for (const Cells& cells : rows_) rows.push_back(escaped(cells));
    std::vector<int> widths = column_widths(header, rows);
    std::vector<std::string> rules;
    for (std::size_t c = 0; c < widths.size(); ++c) {
      widths[c] = std::max(widths[c], 3);
      rules.push_back(repeat("-", widths[c] - (c ? 1 : 0)) + (c ? ":" : ""));
    }
    std::string out =
        line(header, widths, "| ", " | ", " |") + line(rules, widths, "| ", " | ", " |");
    for (const Cells& cells : rows) out += line(cells, widths, "| ", " | ", " |");
    return out;
  }

 private:
  using Cells = std::vector<std::string>;

  static std::vector<int> column_widths(const Cells& header, const std::vector<Cells>& rows) {
    std::vector<int> widths(header.size(), 0);
    const auto widen = [&](const Cells& cells) {
      for (std::size_t c = 0; c < cells.size(); ++c)
        widths[c] = std::max(widths[c], display_width(cells[c]));
    };
    widen(header);
    for (const Cells& cells : rows) widen(cells);
    return widths;
  }

  static std::string line(const Cells& cells, const std::vector<int>& widths, std::string_view left,
                          std::string_view between, std::string_view right) {
    std::string out(left);
    for (std::size_t c = 0; c < cells.size(); ++c) {
      const std::string gap = repeat(" ", widths[c] - display_width(cells[c]));
      out.append(c ? between : "").append(c ? gap + cells[c] : cells[c] + gap);
    }
    out += right;
    out.erase(out.find_last_not_of(' ') + 1);
    return out + '\n';
  }

  static Cells escaped(const Cells& cells) {
    Cells result;
    for (const std::string& cell : cells) {
      result.emplace_back();
      for (const char c : cell) result.back().append(c == '|' ? "\\" : "").push_back(c);
    }
    return result;
  }

  Cells header_;
  std::vector<Cells> rows_;
};

}  // namespace examples
