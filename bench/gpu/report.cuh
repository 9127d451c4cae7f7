// SPDX-License-Identifier: MIT
// The measurements: a line each while they are made, and a file that always has all of them so far.
#pragma once

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "machine.cuh"

namespace gpu_bench {

using Fields = std::vector<std::pair<std::string, std::optional<double>>>;

inline std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (const char c : s) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 32 ? ' ' : c;
  }
  return out + '"';
}
inline std::string number(std::optional<double> x) {
  if (!x || !std::isfinite(*x)) return "null";
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", *x);
  return text;
}

class Report {
 public:
  /// Without a file, the measurements go to the standard output when they are complete.
  Report(const Machine& machine, Index batch, std::filesystem::path file)
      : machine_(machine), batch_(batch), file_(std::move(file)) {
    write();
  }

  /// One measurement: what it took, the least it could take, and whatever else is known.
  void add(const std::string& name, const Timing& t, double flop, double bytes,
           const std::string& precision, Fields more = {}) {
    std::optional<double> floor;
    if (flop > 0 || bytes > 0) floor = machine_.floor(flop, bytes, precision);
    add_with_floor(name, t, flop, bytes, floor, std::move(more));
  }
  void add_with_floor(const std::string& name, const Timing& t, double flop, double bytes,
                      std::optional<double> floor, Fields more = {}) {
    Fields fields{{"seconds", t.seconds}, {"recorded", t.recorded}};
    if (t.launches) fields.emplace_back("launches", t.launches);
    const bool work = flop > 0 || bytes > 0;
    if (flop > 0) fields.emplace_back("flop", flop);
    if (bytes > 0) fields.emplace_back("bytes", bytes);
    if (work) {
      fields.emplace_back("floor", floor);
      fields.emplace_back("share", floor ? std::optional(*floor / t.seconds) : std::nullopt);
    }
    if (flop > 0) fields.emplace_back("flop_per_second", flop / t.seconds);
    if (bytes > 0) fields.emplace_back("bytes_per_second", bytes / t.seconds);
    fields.insert(fields.end(), more.begin(), more.end());
    std::fprintf(stderr, "%-52s %11.3f us", name.c_str(), 1e6 * t.seconds);
    if (work) {
      if (floor)
        std::fprintf(stderr, "  floor %11.3f us %4.0f %%", 1e6 * *floor, 100 * *floor / t.seconds);
      else
        std::fprintf(stderr, "  floor           - us    - %%");
    }
    if (flop > 0) std::fprintf(stderr, "  %7.1f TFLOP/s", 1e-12 * flop / t.seconds);
    if (bytes > 0) std::fprintf(stderr, "  %7.1f GB/s", 1e-9 * bytes / t.seconds);
    for (const auto& [key, value] : more)
      if (value) std::fprintf(stderr, "  %s %.6g", key.c_str(), *value);
    std::fputc('\n', stderr);
    put(name, "{" + Report::fields(fields) + "}");
  }
  void failed(const std::string& name, const std::string& why) {
    std::fprintf(stderr, "%-52s failed: %s\n", name.c_str(), why.c_str());
    put(name, "{\"error\": " + quoted(why) + "}");
    failures_ = true;
  }
  bool failures() const { return failures_; }

  std::string json() const {
    const Machine& m = machine_;
    Fields numbers{
        {"multiprocessors", m.processors},   {"driver", m.driver},     {"runtime", m.runtime},
        {"memory_bytes", m.memory_bytes},    {"l2_bytes", m.l2_bytes}, {"bandwidth", m.bandwidth()},
        {"copy_bandwidth", m.copy_bandwidth}};
    for (const char* precision : {"strict", "tf32", "bf16"})
      numbers.emplace_back(std::string("peak_") + precision, m.peak(precision));
    std::string out = "{\"device\": {\"name\": " + quoted(m.name) + ", \"capability\": \"" +
                      std::to_string(m.major) + "." + std::to_string(m.minor) +
                      "\", \"peaks\": " + (m.peaks ? "\"published\"" : "\"unknown\"") + ", " +
                      fields(numbers) + "},\n \"batch\": " + std::to_string(batch_) +
                      ",\n \"results\": {";
    for (std::size_t i = 0; i < results_.size(); ++i)
      out += (i ? ",\n  " : "\n  ") + quoted(results_[i].first) + ": " + results_[i].second;
    return out + "\n }}\n";
  }

 private:
  static std::string fields(const Fields& list) {
    std::string out;
    for (const auto& [key, value] : list)
      out += (out.empty() ? "" : ", ") + quoted(key) + ": " + number(value);
    return out;
  }
  void put(const std::string& name, const std::string& result) {
    results_.emplace_back(name, result);
    write();
  }
  /// In one go, so that whoever ends this program leaves a file that is whole.
  void write() const {
    if (file_.empty()) return;
    std::filesystem::path written = file_;
    written += ".new";
    std::ofstream out(written);
    out << json() << std::flush;
    deq::require<deq::IoError>(out.good(), "cannot write ", written.string());
    std::filesystem::rename(written, file_);
  }

  const Machine& machine_;
  const Index batch_;
  const std::filesystem::path file_;
  std::vector<std::pair<std::string, std::string>> results_;
  bool failures_ = false;
};

}  // namespace gpu_bench
