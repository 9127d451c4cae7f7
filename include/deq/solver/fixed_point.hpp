// SPDX-License-Identifier: MIT
#pragma once

#include <deq/solver/concept.hpp>

namespace deq {

/// Damped fixed-point (Picard) iteration, each sample a problem of its own:
///
///     z <- z + damping (f(z) - z),   0 < damping <= 1 for a contraction; 1 is z <- f(z)
///
/// Cost: one evaluation of f and one pass over z a step. Leaves no inverse behind.
struct FixedPoint {
  static constexpr bool judges_last = true;

  Stopping stopping = {};
  double damping = 1;

  template <class B>
  using Inverse = NoInverse;

  template <class B>
  struct Workspace {
    SolveReport report;

   private:
    friend struct FixedPoint;
    Monitor<B> monitor;
    Evaluator<B> evaluate;
    Array<B> g;
  };

  template <KeepInverse keep = KeepInverse::no, FixedPointMap Map, class Observer = NoObserver>
  void solve(Map& f, BatchView<typename Map::Backend::Scalar> z,
             Workspace<typename Map::Backend>& ws, Observer&& observer = {}) const {
    detail::check_observer<Observer>();
    using B = typename Map::Backend;
    using S = typename B::Scalar;
    static_assert(keep == KeepInverse::no, "deq: FixedPoint leaves no inverse Jacobian behind");
    require(damping > 0, "FixedPoint: damping must be > 0, got ", damping);
    const BatchView<S> g = ws.g.batch(z.dim, z.count);
    Samples active = ws.monitor.start(stopping, z.dim, z.count);
    const auto judge = [&] {
      ws.monitor.judge(active, 1, ws.evaluate(f, active, z), z, g, observer);
      active = ws.monitor.running(active);
    };
    judge();
    B::repeat(active, [&] {
      B::axpby(active, static_cast<S>(damping), BatchView<const S>(g), S(1), z);
      judge();
    });
    ws.monitor.finish(z, ws.report);
  }
};

}  // namespace deq
