// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <type_traits>

#include <deq/inverse/broyden_steps.hpp>
#include <deq/inverse/low_rank_pairs.hpp>
#include <deq/solver/concept.hpp>
#include <deq/solver/line_search.hpp>

namespace deq {

namespace detail {
/// What is done for a sample after the verdict on it: its next step is planned, if it goes on.
template <class Plan>
struct PlanSample {
  Learns learns;
  Plan plan;

  template <class Team>
  DEQ_HOST_DEVICE void operator()(Index s, const Team& team) const {
    plan(s, learns(s), team);
  }
};
/// The verdict and that, at once where each sample is judged `alone`; else others have to be heard
/// in between.
template <class Judge, class Plan>
struct JudgeAndPlan {
  bool alone;
  Judge judge;
  Plan plan;

  template <class Team>
  DEQ_HOST_DEVICE void operator()(Index s, const Team& team) const {
    if (!alone) return;
    judge(s, team);
    plan(s, team);
  }
};
template <class Plan>
PlanSample(Learns, Plan) -> PlanSample<Plan>;
template <class Judge, class Plan>
JudgeAndPlan(bool, Judge, Plan) -> JudgeAndPlan<Judge, Plan>;
}  // namespace detail

/// Broyden's ("good") method for g(z) = f(z) - z = 0, each sample a problem of its own:
///
///     d = -H g(z),   z <- z + t d,   H <- rank-one update such that H dg = dz,   H_0 = -I
///
/// so that the first step is a fixed-point step. Nguyen and Mauch, section 3; C. G. Broyden, Math.
/// Comp. 19 (1965). t = 1 with FullStep. When a sample meets the tolerance at step k it leaves with
/// k - 1 updates; when its budget ends, and the inverse is to be kept, with k.
///
/// Storage: how H is kept, Pairs or StepsOnly. Cost: one evaluation of f a step, and two passes,
/// H::residual and H::advance, at the end of which each sample's small algebra is done; a block of
/// samples takes both in turn, so that a basis which fits a near cache comes from memory once.
/// Memory: the storage, and 6 D numbers a sample, 3 D where the inverse keeps the direction.
template <class Storage = Pairs, class LineSearch = FullStep>
struct Broyden {
  static_assert(!(Storage::needs_unit_steps && !std::is_same_v<LineSearch, FullStep>),
                "deq: StepsOnly keeps unit steps: use Broyden<Pairs, Armijo> for a line search");

  static constexpr bool judges_last = std::is_same_v<LineSearch, FullStep>;

  Stopping stopping = {};
  Index memory = 20;  ///< m, updates kept; there is room for max_iterations at most
  WhenFull when_full = Storage::default_when_full;
  LineSearch line_search = {};

  template <class B>
  using Inverse = typename Storage::template Inverse<B>;

  template <class B>
  struct Workspace {
    static_assert(QuasiNewtonInverse<Inverse<B>, B>,
                  "deq: the storage of Broyden names an inverse that a rank-one update can build: "
                  "Pairs, StepsOnly, CompactSteps, or see QuasiNewtonInverse");

    SolveReport report;
    Inverse<B> inverse;

   private:
    friend struct Broyden;
    Monitor<B> monitor;
    Evaluator<B> evaluate;
    Array<B> g, d, length;
    Array<B, bool> skipped;
    Array<B, Index> learning;
    typename Inverse<B>::Workspace update;
    typename LineSearch::template Workspace<B> line_search;
  };

  template <KeepInverse keep = KeepInverse::yes, FixedPointMap Map, class Observer = NoObserver>
  void solve(Map& f, BatchView<typename Map::Backend::Scalar> z,
             Workspace<typename Map::Backend>& ws, Observer&& observer = {}) const {
    detail::check_observer<Observer>();
    using B = typename Map::Backend;
    using S = typename B::Scalar;
    constexpr bool full_steps = std::is_same_v<LineSearch, FullStep>;
    validate();
    Inverse<B>& h = ws.inverse;
    // Never are there more updates than iterations.
    h.prepare(z.dim, std::min<Index>(memory, stopping.max_iterations), z.count, ws.update);
    const Index vectors = Inverse<B>::keeps_direction ? 0 : z.count;
    const BatchView<S> d = ws.d.batch(z.dim, vectors);
    ws.length.resize(z.count);
    ws.skipped.resize(z.count);
    ws.learning.resize(z.count);

    Samples active = ws.monitor.start(stopping, z.dim, z.count);
    h.reset(active);
    B::fill(ws.length.data(), z.count, S(1));

    BroydenIteration<S> iteration{
        .z = z,
        .g = ws.g.batch(z.dim, vectors),
        .d = d,
        .best = ws.monitor.best(),
        .improved = ws.monitor.improved(),
        .moves = full_steps,
        .g_squared = ws.monitor.g_squared(),
        .f_squared = ws.monitor.f_squared(),
        .length = ws.length.data(),
        .when_full = when_full,
        .skipped = ws.skipped.data(),
    };
    const bool alone = ws.monitor.each_alone(observer);
    const detail::JudgeAndPlan verdict{
        alone, ws.monitor.judge_sample(1),
        detail::PlanSample{ws.monitor.learns(keep == KeepInverse::yes),
                           h.plan(iteration, ws.update)}};

    // What lies between two evaluations of f, for the n active samples from `first` on: the verdict
    // on the residual of f(z), and for those who go on the update of H and the next step.
    const auto between = [&](bool start, BatchView<const S> fz, Index first, Index n) {
      const Samples a{active.id + first, n};
      BroydenIteration<S> it = iteration;
      it.f = fz.columns(first, n);
      it.ids = ws.learning.data() + first;
      h.residual(a, it, verdict, ws.update);
      if (!alone) {
        ws.monitor.verdict(a, 1, observer);
        B::for_each_team(a, verdict.plan);
      }
      const auto count_skipped = ws.monitor.count_skipped(ws.skipped.data());
      if (start)
        h.begin(a, it, count_skipped, ws.update);
      else
        h.advance(a, it, count_skipped, ws.update);
    };
    Index steps = 0;
    const auto judge = [&](BatchView<const S> fz) {
      const auto part = [&](Index first, Index n) { between(steps == 0, fz, first, n); };
      if (alone)
        B::in_blocks(active.count, z.dim * (std::min(steps, h.memory()) + 4), part);
      else
        part(0, active.count);
      active = ws.monitor.running(active);
      ++steps;
    };

    judge(ws.evaluate(f, active, z));
    B::repeat(active, [&] {
      if constexpr (full_steps)
        judge(ws.evaluate(f, active, z));
      else
        judge(line_search.template step<B>(f, active, d, z, ws.length.data(), ws.monitor,
                                           ws.evaluate, ws.line_search));
    });
    ws.monitor.finish(z, ws.report);
    if constexpr (B::whole_batches) {  // of a device, others may have the memory
      ws.g = {};
      ws.d = {};
    }
  }

  void validate() const {
    stopping.validate();
    line_search.validate(stopping);
    require(memory >= 0, "Broyden: memory must be >= 0, got ", memory);
    require(!Storage::needs_unit_steps || when_full == WhenFull::restart ||
                when_full == WhenFull::freeze,
            "Broyden<StepsOnly>: when_full must be restart or freeze");
  }
};

}  // namespace deq
