// SPDX-License-Identifier: MIT
#pragma once

#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <ostream>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <deq/core/error.hpp>
#include <deq/io/atomic_file.hpp>

#include "text.hpp"

namespace examples {

/// One cell as RFC 4180 has it: quoted if it must be.
inline std::string csv_cell(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) quoted.append(c == '"' ? "\"" : "").push_back(c);
  return quoted + '"';
}
template <Number T>
std::string csv_cell(T x) {
  return shortest(x);
}

/// A log that survives interruptions: a header, then one row at a time, each on the disk's way when
/// row() returns. The first column counts steps, so that a resumed run can take back what the
/// interrupted one wrote after its last checkpoint.
class CsvLog {
 public:
  /// Starts `path` anew. Throws deq::IoError if it cannot be written.
  CsvLog(std::filesystem::path path, std::vector<std::string> columns)
      : path_(std::move(path)), columns_(std::move(columns)) {
    deq::require(!columns_.empty(), "CsvLog: needs at least one column");
    write_whole(header());
    open();
  }

  /// Goes on with `path` after `last_step`: keeps the rows up to that step, discards later rows and
  /// a last line that was cut off. A missing file is started. Throws deq::FormatError if the file's
  /// header or the first column of a row is not a log's, deq::IoError if it cannot be read or
  /// written.
  static CsvLog resume(std::filesystem::path path, std::vector<std::string> columns,
                       std::int64_t last_step) {
    if (!std::filesystem::exists(path)) return {std::move(path), std::move(columns)};
    CsvLog log;
    log.path_ = std::move(path);
    log.columns_ = std::move(columns);
    log.write_whole(log.rows_until(last_step));
    log.open();
    return log;
  }

  /// Appends one row, one argument a column: numbers or texts. Throws deq::IoError if it cannot be
  /// written.
  template <class... Cells>
  void row(const Cells&... cells) {
    deq::require<deq::ShapeError>(sizeof...(cells) == columns_.size(), "CsvLog: a row needs ",
                                  columns_.size(), " cells, got ", sizeof...(cells));
    const std::vector<std::string> texts = {csv_cell(cells)...};
    errno = 0;
    out_ << join(texts, ",") << '\n' << std::flush;
    require_io(out_.good(), "write");
  }

 private:
  CsvLog() = default;

  std::string header() const {
    std::vector<std::string> names;
    for (const std::string& name : columns_) names.push_back(csv_cell(name));
    return join(names, ",") + '\n';
  }

  std::string rows_until(std::int64_t last_step) const {
    std::ifstream in(path_, std::ios::binary);
    require_io(in.good(), "read");
    const std::string all{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    const std::string first = header();
    deq::require<deq::FormatError>(all.starts_with(first), path_.string(),
                                   ": not a log of this program: its first line should be\n  ",
                                   first, "got\n  ", all.substr(0, all.find('\n')));
    std::size_t kept = first.size();
    for (std::size_t end; (end = all.find('\n', kept)) != std::string::npos; kept = end + 1) {
      std::int64_t step = 0;
      const char* const begin = all.data() + kept;
      const auto [stop, error] = std::from_chars(begin, all.data() + end, step);
      deq::require<deq::FormatError>(error == std::errc{}, path_.string(),
                                     ": a row should start with a step number, got\n  ",
                                     all.substr(kept, end - kept));
      if (step > last_step) break;
    }
    return all.substr(0, kept);
  }

  void write_whole(const std::string& text) const {
    deq::write_file_atomically(path_, [&](std::ostream& out) { out << text; });
  }

  void open() {
    errno = 0;
    out_.open(path_, std::ios::binary | std::ios::app);
    require_io(out_.good(), "write");
  }

  void require_io(bool done, const char* what) const {
    deq::require<deq::IoError>(done, "cannot ", what, ' ', path_.string(), ": ",
                               std::generic_category().message(errno));
  }

  std::filesystem::path path_;
  std::vector<std::string> columns_;
  std::ofstream out_;
};

}  // namespace examples
