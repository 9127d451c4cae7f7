// SPDX-License-Identifier: MIT
// How a solve ended, sample by sample. Not converging is a result, not an exception.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include <deq/core/host_pool.hpp>
#include <deq/core/types.hpp>

namespace deq {

namespace detail {
/// The larger of two residuals, or a NaN, which no comparison would find.
inline double worse(double a, double b) { return std::isnan(a) || a >= b ? a : b; }
}  // namespace detail

/// Why a sample left the iteration.
enum class SolveStatus : std::uint8_t {
  running,           ///< still iterating (never in a finished report)
  converged,         ///< a tolerance was met
  budget_exhausted,  ///< max_iterations made, no tolerance met
  stalled,           ///< the residual has stopped falling (Stopping::stall_window)
  diverged,          ///< the residual grew by more than Stopping::divergence_factor
  non_finite,        ///< f returned a NaN or an infinity
  stopped,           ///< the observer asked for it
};

constexpr std::string_view name(SolveStatus status) {
  switch (status) {
    case SolveStatus::running: return "running";
    case SolveStatus::converged: return "converged";
    case SolveStatus::budget_exhausted: return "budget exhausted";
    case SolveStatus::stalled: return "stalled";
    case SolveStatus::diverged: return "diverged";
    case SolveStatus::non_finite: return "non-finite";
    case SolveStatus::stopped: return "stopped by the observer";
  }
  return "unknown";
}

/// The outcome of one sample. Residuals are those of the returned (best) iterate.
struct SampleReport {
  SolveStatus status = SolveStatus::running;
  int iterations = 0;       ///< steps taken
  int best_iteration = 0;   ///< the step whose iterate is returned; 0 is the start
  int evaluations = 0;      ///< evaluations of f (for a linear solver: products)
  int skipped_updates = 0;  ///< inverse updates left out because their denominator vanished
  double absolute = 0;      ///< ||g(z)||, g(z) = f(z) - z, Euclidean
  double relative = 0;      ///< ||g(z)|| / (||f(z)|| + 1e-9)

  bool converged() const { return status == SolveStatus::converged; }
};

/// The outcome of a solve: one entry a sample, and the trace if Stopping::trace asked for it.
struct SolveReport {
  PoolVector<SampleReport> samples;
  /// Residuals of sample s after its steps (Gmres: after its cycles) at [s]; empty without
  /// Stopping::trace.
  std::vector<std::vector<double>> relative_trace;
  std::vector<std::vector<double>> absolute_trace;

  bool all_converged() const {
    return std::all_of(samples.begin(), samples.end(),
                       [](const SampleReport& s) { return s.converged(); });
  }
  Index count(SolveStatus status) const {
    return std::count_if(samples.begin(), samples.end(),
                         [=](const SampleReport& s) { return s.status == status; });
  }
  double mean_iterations() const {
    return mean([](const SampleReport& s) { return s.iterations; });
  }
  double mean_relative() const {
    return mean([](const SampleReport& s) { return s.relative; });
  }
  /// NaN if any is.
  double worst_relative() const {
    double worst = 0;
    for (const SampleReport& s : samples) worst = detail::worse(worst, s.relative);
    return worst;
  }
  int max_iterations() const {
    int most = 0;
    for (const SampleReport& s : samples) most = std::max(most, s.iterations);
    return most;
  }

 private:
  template <class Get>
  double mean(Get get) const {
    double sum = 0;
    for (const SampleReport& s : samples) sum += static_cast<double>(get(s));
    return samples.empty() ? 0 : sum / static_cast<double>(samples.size());
  }
};

}  // namespace deq
