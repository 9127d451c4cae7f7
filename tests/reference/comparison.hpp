// SPDX-License-Identifier: MIT
// Compares computed numbers with stored ones and prints every comparison. A stored tensor may be
// replaced by a sketch of itself, a few random projections, which is what tests/data holds.
#pragma once

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include <deq/core/random.hpp>
#include <deq/core/report.hpp>
#include <deq/io/safetensors.hpp>

namespace reference {

using deq::Index;
using deq::detail::worse;

/// A sketch of x: its norm, then the products with `sketch_size` random vectors of +-1, keyed by
/// the tensor's name. For an error e the products give ||e||^2 in the mean, so that the sketch of a
/// wrong tensor differs from that of the right one by about the norm of their difference. It is
/// stored in the tensor's own precision: the sketch of rounded numbers is as inexact as they are.
inline constexpr int sketch_size = 16;
inline const std::string sketch_suffix = ".sketch";

inline std::vector<double> sketch(const std::string& name, std::span<const double> x) {
  std::uint64_t key = 1469598103934665603u;  // FNV-1a of the name
  for (const char c : name) key = (key ^ static_cast<unsigned char>(c)) * 1099511628211u;
  std::vector<double> out(1 + sketch_size, 0.0);
  for (const double v : x) out[0] += v * v;
  out[0] = std::sqrt(out[0]);
  for (int k = 0; k < sketch_size; ++k) {
    deq::Random random(key, deq::Purpose::probe, static_cast<std::uint32_t>(k));
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (i % 32 == 0) bits = random.bits();
      out[static_cast<std::size_t>(k) + 1] += (bits >> (i % 32)) & 1 ? x[i] : -x[i];
    }
  }
  return out;
}

inline double norm(std::span<const double> x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

/// ||a - b|| / ||b||.
inline double relative_error(std::span<const double> a, std::span<const double> b) {
  if (a.size() != b.size()) return INFINITY;
  double error = 0;
  for (std::size_t i = 0; i < a.size(); ++i) error += (a[i] - b[i]) * (a[i] - b[i]);
  const double scale = norm(b);
  return std::sqrt(error) / (scale > 0 ? scale : 1);
}

/// One file of stored numbers.
class Stored {
 public:
  explicit Stored(const std::filesystem::path& path) : file_(deq::SafetensorsFile::open(path)) {}

  bool has(const std::string& name) const {
    return file_.contains(name) || file_.contains(name + sketch_suffix);
  }
  bool whole(const std::string& name) const { return file_.contains(name); }
  /// Stored in fewer digits than it was computed with.
  bool rounded(const std::string& name) const {
    return file_.dtype(whole(name) ? name : name + sketch_suffix) == deq::Dtype::f32;
  }
  std::vector<double> read(const std::string& name) const { return file_.read<double>(name); }
  std::vector<std::string> names() const { return file_.names(); }
  const deq::SafetensorsFile& file() const { return file_; }

  /// The relative L2 error of `computed`, exact or estimated from the sketch.
  double error(const std::string& name, std::span<const double> computed) const {
    if (whole(name)) return relative_error(computed, read(name));
    const std::vector<double> expected = read(name + sketch_suffix);
    const std::vector<double> got = sketch(name, computed);
    double sum = 0;
    for (std::size_t k = 1; k < got.size(); ++k)
      sum += (got[k] - expected[k]) * (got[k] - expected[k]);
    const double estimate = std::sqrt(sum / sketch_size);
    return std::max(estimate, std::abs(got[0] - expected[0])) / (expected[0] > 0 ? expected[0] : 1);
  }

 private:
  deq::SafetensorsFile file_;
};

/// Prints comparisons and counts those that fail.
class Comparison {
 public:
  void section(const std::string& title) { std::printf("\n== %s\n", title.c_str()); }

  void check(const std::string& what, double error, double tolerance) {
    const bool ok = error <= tolerance;
    ++(ok ? passed_ : failed_);
    std::printf("%s  %-58s error %.2e  tolerance %.1e\n", ok ? "ok  " : "FAIL", what.c_str(), error,
                tolerance);
    std::fflush(stdout);
  }
  /// Compares with a stored tensor by relative L2 error, if the file has it. What is stored in
  /// float32 but computed in double cannot agree better than 5e-7.
  void tensor(const Stored& stored, const std::string& name, std::span<const double> computed,
              double tolerance) {
    if (!stored.has(name)) return;
    const bool rounded = stored.rounded(name) && tolerance < 5e-7;
    check(name, stored.error(name, computed), rounded ? 5e-7 : tolerance);
  }
  /// Compares number by number: the largest |a - b| / |b|.
  void each(const Stored& stored, const std::string& name, std::span<const double> computed,
            double tolerance) {
    if (!stored.has(name)) return;
    const std::vector<double> expected = stored.read(name);
    double worst = expected.size() == computed.size() ? 0 : INFINITY;
    for (std::size_t i = 0; i < expected.size() && i < computed.size(); ++i) {
      const double error = std::abs(computed[i] - expected[i]) / std::abs(expected[i]);
      worst = worse(worst, error);
    }
    check(name, worst, tolerance);
  }
  /// Compares number by number: the largest |a - b|.
  void absolute(const Stored& stored, const std::string& name, std::span<const double> computed,
                double tolerance) {
    if (!stored.has(name)) return;
    const std::vector<double> expected = stored.read(name);
    double worst = expected.size() == computed.size() ? 0 : INFINITY;
    for (std::size_t i = 0; i < expected.size() && i < computed.size(); ++i) {
      const double error = std::abs(computed[i] - expected[i]);
      worst = worse(worst, error);
    }
    check(name, worst, stored.rounded(name) && tolerance < 5e-7 ? 5e-7 : tolerance);
  }
  void note(const std::string& text) { std::printf("      %s\n", text.c_str()); }

  int failed() const { return failed_; }
  int passed() const { return passed_; }

 private:
  int passed_ = 0, failed_ = 0;
};

}  // namespace reference
