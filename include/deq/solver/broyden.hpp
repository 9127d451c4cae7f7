// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>

#include <deq/inverse/broyden_steps.hpp>
#include <deq/inverse/low_rank_pairs.hpp>
#include <deq/solver/concept.hpp>
#include <deq/solver/line_search.hpp>

namespace deq {

/// Broyden's ("good") method for g(z) = f(z) - z = 0, each sample a problem of its own:
///
///     d = -H g(z),   z <- z + t d,   H <- rank-one update such that H dg = dz,   H_0 = -I
///
/// so that the first step is a fixed-point step. Nguyen and Mauch, section 3; C. G. Broyden, Math.
/// Comp. 19 (1965). t = 1 with FullStep. When a sample meets the tolerance at step k it leaves with
/// k - 1 updates; when its budget ends, and the inverse is to be kept, with k.
///
/// Storage: how H is kept, Pairs or StepsOnly. Cost: one evaluation of f a step, and what
/// H::advance costs. Memory: the storage, and 6 D numbers a sample.
template <class Storage = Pairs, class LineSearch = FullStep>
struct Broyden {
  static_assert(!(Storage::needs_unit_steps && !std::is_same_v<LineSearch, FullStep>),
                "deq: StepsOnly keeps unit steps: use Broyden<Pairs, Armijo> for a line search");

  Stopping stopping = {};
  Index memory = 20;  ///< m, updates kept
  WhenFull when_full = Storage::default_when_full;
  LineSearch line_search = {};

  template <class B>
  using Inverse = typename Storage::template Inverse<B>;

  template <class B>
  struct Workspace {
    SolveReport report;
    Inverse<B> inverse;

   private:
    friend struct Broyden;
    Monitor<B> monitor;
    Evaluator<B> evaluate;
    Array<B> g, d, length;
    Array<B, bool> skipped;
    Array<B, Index> exhausted;
    typename Inverse<B>::Workspace update;
    typename LineSearch::template Workspace<B> line_search;
  };

  template <KeepInverse keep = KeepInverse::yes, FixedPointMap Map, class Observer = NoObserver>
  void solve(Map& f, BatchView<typename Map::Backend::Scalar> z,
             Workspace<typename Map::Backend>& ws, Observer&& observer = {}) const {
    using B = typename Map::Backend;
    using S = typename B::Scalar;
    validate();
    const BatchView<S> g = ws.g.batch(z.dim, z.count), d = ws.d.batch(z.dim, z.count);
    ws.length.resize(z.count);
    ws.skipped.resize(z.count);
    Inverse<B>& h = ws.inverse;
    h.prepare(z.dim, memory, z.count);

    Samples active = ws.monitor.start(stopping, z.dim, z.count);
    h.reset(active);
    B::fill(ws.length.data(), z.count, S(1));
    active = ws.monitor.judge(active, 0, ws.evaluate(f, active, z), z, g, observer);
    B::copy(active, g, d);  // d = -H g with H = -I

    for (int k = 1; !active.empty(); ++k) {
      const BatchView<const S> fz = line_search.template step<B>(
          f, active, d, z, ws.length.data(), ws.monitor, ws.evaluate, ws.line_search);
      active = ws.monitor.judge(active, k, fz, z, g, observer);
      if (keep == KeepInverse::yes && k == stopping.max_iterations)
        active = ws.monitor.with_status(ws.monitor.everybody(), SolveStatus::budget_exhausted,
                                        ws.exhausted);
      h.advance(active, when_full, g, d, ws.length.data(), ws.skipped.data(), ws.update);
      ws.monitor.count_skipped(active, ws.skipped.data());
      if (k == stopping.max_iterations) break;
    }
    ws.monitor.finish(z, ws.report);
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
