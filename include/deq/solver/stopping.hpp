// SPDX-License-Identifier: MIT
// When a sample leaves the iteration, which of its iterates is returned, and the report of both.
// All solvers share it.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstring>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>

#include <deq/backend/array.hpp>
#include <deq/backend/concept.hpp>
#include <deq/backend/everybody.hpp>
#include <deq/core/error.hpp>
#include <deq/core/report.hpp>

namespace deq {

/// Over what residual norms are taken.
enum class Scope {
  sample,  ///< each sample for itself: its result never depends on its neighbours
  batch,   ///< one norm over the whole batch, as the original MDEQ code does; for parity only
};

/// The stopping rule. Tests are made after every evaluation of f, the one at the start included,
/// with g(z) = f(z) - z, absolute = ||g(z)||, relative = ||g(z)|| / (||f(z)|| + 1e-9), Euclidean
/// norms:
///   converged   relative <= relative_tolerance or absolute <= absolute_tolerance
///   non-finite  a norm is NaN or infinite
///   diverged    absolute or relative > divergence_factor x (the same after the first step)
///   stalled     over the last stall_window steps the largest residual, absolute and relative, is
///               below stall_ratio times the smallest, and the last relative one below stall_level
/// The iterate returned is the one that converged, else the one with the lowest relative residual.
struct Stopping {
  int max_iterations = 50;
  double relative_tolerance = 1e-6;  ///< 0 switches the test off
  double absolute_tolerance = 0;     ///< 0 switches the test off
  double divergence_factor = 1e3;    ///< as the original; infinity switches the test off
  int stall_window = 30;             ///< 0 switches the test off
  double stall_ratio = 1.3;
  double stall_level = std::numeric_limits<double>::infinity();
  Scope scope = Scope::sample;
  bool trace = false;  ///< keep every residual in the report

  void validate() const {
    require(max_iterations >= 0, "Stopping: max_iterations must be >= 0, got ", max_iterations);
    require(relative_tolerance >= 0, "Stopping: relative_tolerance must be >= 0, got ",
            relative_tolerance);
    require(absolute_tolerance >= 0, "Stopping: absolute_tolerance must be >= 0, got ",
            absolute_tolerance);
    require(divergence_factor > 1, "Stopping: divergence_factor must be > 1, got ",
            divergence_factor);
    require(stall_window >= 0, "Stopping: stall_window must be >= 0, got ", stall_window);
    require(stall_ratio >= 1, "Stopping: stall_ratio must be >= 1, got ", stall_ratio);
  }
};

namespace detail {

/// What is known of one sample during a solve.
struct Progress {
  SampleReport report;
  double absolute, relative;              ///< of the current iterate
  double first_absolute, first_relative;  ///< after the first step
  int judgements;                         ///< entries made in the residual histories
  bool started;                           ///< has been judged at the start
};

/// Residuals of one sample: entry k is at k mod length, a trace with room for all of them or a ring
/// of the last `stall_window`.
struct History {
  double* entries;
  int length;

  DEQ_HOST_DEVICE void set(int k, double residual) const { entries[k % length] = residual; }
};

/// Smallest and largest of the last `window` of `count` >= window entries, which are all that a
/// ring has.
struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = 0;
};
DEQ_HOST_DEVICE inline Range range_of_last(History history, int count, int window) {
  Range range;
  const int end = count < history.length ? count : history.length;
  for (int k = end - window; k < end; ++k) {
    const double residual = history.entries[k];
    range.low = residual < range.low ? residual : range.low;
    range.high = residual > range.high ? residual : range.high;
  }
  return range;
}

/// Judges one sample, given the squared norms of g and f: at the start, then after so many more
/// steps. Returns whether the iterate is the best so far.
DEQ_HOST_DEVICE inline bool judge(const Stopping& rule, Progress& p, History relative_history,
                                  History absolute_history, int steps, double g_squared,
                                  double f_squared) {
  const int k = p.started ? p.report.iterations + steps : 0;
  p.started = true;
  p.absolute = std::sqrt(g_squared);
  p.relative = p.absolute / (std::sqrt(f_squared) + 1e-9);
  SampleReport& r = p.report;
  r.iterations = k;
  ++r.evaluations;
  if (k > 0) {
    if (p.judgements == 0) {
      p.first_absolute = p.absolute;
      p.first_relative = p.relative;
    }
    relative_history.set(p.judgements, p.relative);
    absolute_history.set(p.judgements, p.absolute);
    ++p.judgements;
  }
  const bool finite = std::isfinite(p.absolute) && std::isfinite(p.relative);
  const bool converged =
      finite &&
      (p.absolute == 0 || (rule.relative_tolerance > 0 && p.relative <= rule.relative_tolerance) ||
       (rule.absolute_tolerance > 0 && p.absolute <= rule.absolute_tolerance));
  // Where f(z) tends to 0 an iterate can meet the absolute tolerance without the lowest relative
  // residual.
  const bool improved = k == 0 || converged || (finite && !(p.relative >= r.relative));
  if (improved) {
    r.best_iteration = k;
    r.absolute = p.absolute;
    r.relative = p.relative;
  }
  if (!finite) {
    r.status = SolveStatus::non_finite;
  } else if (converged) {
    r.status = SolveStatus::converged;
  } else if (p.judgements > 1 && (p.absolute > rule.divergence_factor * p.first_absolute ||
                                  p.relative > rule.divergence_factor * p.first_relative)) {
    r.status = SolveStatus::diverged;
  } else if (k >= rule.max_iterations) {
    r.status = SolveStatus::budget_exhausted;
  } else if (rule.stall_window > 0 && p.judgements >= rule.stall_window &&
             p.relative < rule.stall_level) {
    const Range relative = range_of_last(relative_history, p.judgements, rule.stall_window);
    const Range absolute = range_of_last(absolute_history, p.judgements, rule.stall_window);
    if (relative.high < rule.stall_ratio * relative.low &&
        absolute.high < rule.stall_ratio * absolute.low)
      r.status = SolveStatus::stalled;
  }
  return improved;
}

/// What is done for each sample once its norms are there, by a team of threads (see
/// BackendPrimitives): the verdict on its residual.
template <class S>
struct JudgeSample {
  Stopping rule;
  int steps;
  const S *g_squared, *f_squared;
  Progress* progress;
  double *relative_history, *absolute_history;
  int history_length;
  bool* improved;

  template <class Team>
  DEQ_HOST_DEVICE void operator()(Index s, const Team& team) const {
    if (team.rank == 0)
      improved[s] =
          judge(rule, progress[s], {relative_history + s * history_length, history_length},
                {absolute_history + s * history_length, history_length}, steps,
                static_cast<double>(g_squared[s]), static_cast<double>(f_squared[s]));
    team.sync();
  }
};
/// Whose inverse still changes after the verdict: who goes on, and if the inverse is to be kept,
/// to_the_end, who has just spent his budget.
struct Learns {
  const Progress* progress;
  bool to_the_end;

  DEQ_HOST_DEVICE bool operator()(Index s) const {
    const SolveStatus status = progress[s].report.status;
    return status == SolveStatus::running ||
           (to_the_end && status == SolveStatus::budget_exhausted);
  }
};
/// Who may take another step.
struct InBudget {
  const Progress* progress;
  int max_iterations;

  DEQ_HOST_DEVICE bool operator()(Index s) const {
    return progress[s].report.iterations < max_iterations;
  }
};
/// Counts an update of the inverse that had to be left out, for the samples where skipped[s].
struct CountSkipped {
  Progress* progress;
  const bool* skipped;

  template <class Team>
  DEQ_HOST_DEVICE void operator()(Index s, const Team& team) const {
    if (team.rank == 0) progress[s].report.skipped_updates += skipped[s];
  }
};

}  // namespace detail

/// What an observer sees after every evaluation of f; host memory only (the CPU backend).
struct Observation {
  int iteration;  ///< 0 at the start
  Samples active;
  const detail::Progress* progress;  ///< indexed by sample

  double relative(Index sample) const { return progress[sample].relative; }
  double absolute(Index sample) const { return progress[sample].absolute; }
};

/// The observer that observes nothing, and costs nothing.
struct NoObserver {};

/// Called with a const Observation& after every evaluation; true ends the solve.
template <class F>
concept SolveObserver = std::same_as<std::remove_cvref_t<F>, NoObserver> ||
    requires(F& observer, const Observation& seen) {
  { observer(seen) } -> std::convertible_to<bool>;
};

namespace detail {
/// The entrance of every solver.
template <class Observer>
constexpr void check_observer() {
  static_assert(SolveObserver<Observer>,
                "deq: an observer is called with a const deq::Observation& and returns a bool, "
                "true to end the solve");
}
}  // namespace detail

namespace detail {
/// Replaces each x_s by the sum of all; `one` is where a set of one sample can be read.
template <Backend B>
void share_sum(Samples a, const Index* one, typename B::Scalar* x) {
  using S = typename B::Scalar;
  if (a.empty()) return;
  B::for_each({one, 1}, [=] DEQ_HOST_DEVICE(Index) {
    double sum = 0;
    for (Index j = 0; j < a.count; ++j)
      if (a[j] >= 0) sum += static_cast<double>(x[a[j]]);
    for (Index j = 0; j < a.count; ++j)
      if (a[j] >= 0) x[a[j]] = static_cast<S>(sum);
  });
}
}  // namespace detail

/// Keeps the books of a solve: who is still active, how everybody stands, the best iterates.
template <Backend B>
class Monitor {
  using S = typename B::Scalar;

 public:
  /// Begins a solve of `count` samples of dimension `dim`; everybody is active.
  Samples start(const Stopping& rule, Index dim, Index count) {
    rule.validate();
    rule_ = rule;
    dim_ = dim;
    count_ = count;
    best_.batch(dim, count);
    progress_.resize(count);
    g_squared_.resize(count);
    f_squared_.resize(count);
    // A trace has every residual, the test for a stall looks at a window of them.
    history_length_ = rule.max_iterations;
    if (!rule.trace) history_length_ = std::min(history_length_, rule.stall_window);
    history_length_ = std::max(history_length_, 1);
    relative_history_.resize(count * history_length_);
    absolute_history_.resize(count * history_length_);
    active_.resize(count);
    improved_.resize(count);
    B::copy_bytes(active_.data(), everybody().id, static_cast<std::size_t>(count) * sizeof(Index));
    Progress* progress = progress_.data();
    // With the padding, so that all that is downloaded has been written.
    B::for_each(everybody(), [=] DEQ_HOST_DEVICE(Index s) {
      std::memset(static_cast<void*>(progress + s), 0, sizeof *progress);
      progress[s] = Progress{};
    });
    return {active_.data(), count};
  }

  Samples everybody() { return everybody_(count_); }
  S* g_squared() { return g_squared_.data(); }
  S* f_squared() { return f_squared_.data(); }
  BatchView<S> best() { return {best_.data(), dim_, count_}; }
  const bool* improved() const { return improved_.data(); }

  /// G = F - Z for the active samples (F compact), and the verdict on it.
  template <class Observer>
  void judge(Samples a, int steps, BatchView<const S> f, BatchView<const S> z, BatchView<S> g,
             Observer&& observer) {
    B::residual(a, f, z, g, g_squared(), f_squared());
    verdict(a, steps, observer);
    B::copy(a, z, best(), improved());
  }

  /// What the stopping rule makes of the norms g_squared() and f_squared(), so many steps after the
  /// last verdict (the first is on the start): the observer is asked, whoever has finished gets his
  /// status. Of samples that are judged `each_alone` it is judge_sample(steps), in any order.
  template <class Observer>
  void verdict(Samples a, int steps, Observer&& observer) {
    if (rule_.scope == Scope::batch)
      for (S* squared : {g_squared(), f_squared()})
        detail::share_sum<B>(a, everybody().id, squared);
    B::for_each_team(a, judge_sample(steps));
    if constexpr (!std::same_as<std::remove_cvref_t<Observer>, NoObserver> &&
                  SolveObserver<Observer>) {
      static_assert(!B::whole_batches,
                    "deq: an observer reads host memory: it works with the CPU backend only");
      const Progress* progress = progress_.data();
      const int k = a.empty() ? 0 : progress[a[0]].report.iterations;
      if (observer(Observation{k, a, progress})) stop(a);
    }
  }
  /// No verdict needs to know of any other sample.
  template <class Observer>
  bool each_alone(const Observer&) const {
    return rule_.scope == Scope::sample && std::is_same_v<Observer, NoObserver>;
  }
  /// Those of the active samples that have not finished, the new active ones.
  Samples running(Samples a) { return learning(a, false, active_.data()); }
  /// Those of the samples `a`, active before the verdict, whose inverse still changes.
  Samples learning(Samples a, bool to_the_end, Index* ids) const {
    return B::filter(a, learns(to_the_end), ids);
  }

  // What is done for each sample, by whoever has its norms.
  detail::JudgeSample<S> judge_sample(int steps) {
    return {rule_,
            steps,
            g_squared(),
            f_squared(),
            progress_.data(),
            relative_history_.data(),
            absolute_history_.data(),
            history_length_,
            improved_.data()};
  }
  detail::Learns learns(bool to_the_end) const { return {progress_.data(), to_the_end}; }
  detail::CountSkipped count_skipped(const bool* skipped) { return {progress_.data(), skipped}; }

  detail::InBudget in_budget() const { return {progress_.data(), rule_.max_iterations}; }

  /// Counts a step of each sample, of one evaluation, that is not judged at once (a Krylov cycle).
  void count_steps(Samples a) {
    Progress* progress = progress_.data();
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      ++progress[s].report.iterations;
      ++progress[s].report.evaluations;
    });
  }
  /// Counts evaluations of f that were not followed by a judgement (a line search).
  void count_evaluations(Samples a, int n) {
    Progress* progress = progress_.data();
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) { progress[s].report.evaluations += n; });
  }

  /// Writes the best iterates to z, and the report.
  void finish(BatchView<S> z, SolveReport& report) {
    B::copy(everybody(), best(), z);
    if constexpr (B::whole_batches) best_ = {};  // of a device, others may have the memory
    const bool trace = rule_.trace;
    B::when_downloaded(progress_.data(), count_, [&report, trace](std::span<const Progress> now) {
      report.samples.resize(now.size());
      for (std::size_t s = 0; s < now.size(); ++s) report.samples[s] = now[s].report;
      for (auto* list : {&report.relative_trace, &report.absolute_trace}) {
        list->resize(trace ? now.size() : 0);
        for (std::size_t s = 0; s < list->size(); ++s)
          (*list)[s].resize(static_cast<std::size_t>(now[s].judgements));
      }
    });
    if (!trace) return;
    fill_trace(relative_history_, report.relative_trace);
    fill_trace(absolute_history_, report.absolute_trace);
  }

 private:
  using Progress = detail::Progress;

 public:  // for nvcc, which accepts no device lambda in a private function, nor one where a type
          // of the caller's is a template argument
  void stop(Samples a) {
    Progress* progress = progress_.data();
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      if (progress[s].report.status == SolveStatus::running)
        progress[s].report.status = SolveStatus::stopped;
    });
  }

 private:
  /// Each sample's entries, whose number is known when they arrive.
  void fill_trace(const Array<B, double>& history, std::vector<std::vector<double>>& trace) const {
    B::when_downloaded(history.data(), count_ * history_length_,
                       [&trace, length = history_length_](std::span<const double> all) {
                         auto first = all.begin();
                         for (std::vector<double>& of_sample : trace) {
                           std::copy_n(first, of_sample.size(), of_sample.begin());
                           first += length;
                         }
                       });
  }

  Stopping rule_;
  Index dim_ = 0, count_ = 0;
  int history_length_ = 1;
  Array<B> best_, g_squared_, f_squared_;
  Array<B, Progress> progress_;
  Array<B, double> relative_history_, absolute_history_;
  Everybody<B> everybody_;
  Array<B, Index> active_;
  Array<B, bool> improved_;
};

/// Evaluates a map for the active samples of a whole batch: F is compact, and so is what f is
/// given. While everybody is active nothing is copied.
template <Backend B>
class Evaluator {
  using S = typename B::Scalar;

 public:
  /// Returns f of the active columns of z, compact; it stays until the next call.
  template <class Map>
  BatchView<const S> operator()(Map& f, Samples a, BatchView<const S> z) {
    const BatchView<const S> active = compact(a, z);
    if constexpr (requires { f.value(a, active); }) {
      return f.value(a, active);
    } else {
      const BatchView<S> out = f_.batch(z.dim, a.count);
      f.evaluate(a, active, out);
      return out;
    }
  }
  /// The active columns of z, packed; z itself if all are active.
  BatchView<const S> compact(Samples a, BatchView<const S> z) {
    if (a.count == z.count) return z;
    const BatchView<S> packed = z_.batch(z.dim, a.count);
    B::gather(a, z, packed);
    return packed;
  }

 private:
  Array<B> f_, z_;
};

}  // namespace deq
