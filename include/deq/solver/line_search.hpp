// SPDX-License-Identifier: MIT
// How far along its direction a quasi-Newton step goes. A line search moves z and returns f there,
// so that no evaluation is made twice.
#pragma once

#include <cmath>

#include <deq/core/map.hpp>
#include <deq/solver/stopping.hpp>

namespace deq {

/// z <- z + d, always. What the paper and the original code do. The inverse moves z as it forms d.
struct FullStep {
  template <class B>
  struct Workspace {};

  void validate(const Stopping&) const {}
};

/// Backtracking until Armijo's condition holds for the squared residual,
///
///     ||g(z + t d)||^2 <= (1 - 2 c t) ||g(z)||^2
///
/// (d taken for a Newton direction, along which the derivative of ||g||^2 / 2 is -||g||^2). t
/// starts at 1 and goes to the minimiser of the interpolating parabola, kept within [t / 10, t /
/// 2]. Every sample has its own t. After max_backtracks the last t is taken as it is. Cost: one
/// evaluation of f a backtrack. Nocedal and Wright, "Numerical Optimization", section 3.5.
struct Armijo {
  double c = 1e-4;
  int max_backtracks = 6;

  template <class B>
  struct Workspace {
    Array<B> trial, f, g, compact_f, g_squared, f_squared;
    Array<B, Index> searching;
  };

  void validate(const Stopping& stopping) const {
    require(c > 0 && c < 0.5, "Armijo: c must be in (0, 1/2), got ", c);
    require(max_backtracks >= 0, "Armijo: max_backtracks must be >= 0, got ", max_backtracks);
    require(stopping.scope == Scope::sample, "Armijo: works with Scope::sample only");
  }

  /// Moves the active samples of z by length_s d_s; returns f(z), compact.
  template <Backend B, class Map>
  BatchView<const typename B::Scalar> step(Map& map, Samples a, BatchView<typename B::Scalar> d,
                                           BatchView<typename B::Scalar> z,
                                           typename B::Scalar* length, Monitor<B>& monitor,
                                           Evaluator<B>& evaluate, Workspace<B>& ws) const {
    using S = typename B::Scalar;
    const BatchView<S> trial = ws.trial.batch(z.dim, z.count), f = ws.f.batch(z.dim, z.count),
                       g = ws.g.batch(z.dim, z.count);
    ws.g_squared.resize(z.count);
    ws.f_squared.resize(z.count);
    ws.searching.resize(z.count);
    const S* start = monitor.g_squared();
    const S* now = ws.g_squared.data();
    S* one = ws.f_squared.data();

    B::fill(length, z.count, S(1));
    Samples searching = a;
    for (int backtracks = 0; !B::empty(searching); ++backtracks) {
      // trial = z + t d
      B::copy(searching, z, trial);
      B::fill(one, z.count, S(1));
      B::axpby(searching, length, BatchView<const S>(d), one, trial);
      const BatchView<const S> compact_f = evaluate(map, searching, trial);
      B::scatter(searching, compact_f, f);
      B::residual(searching, compact_f, trial, g, ws.g_squared.data(), ws.f_squared.data());
      if (backtracks == max_backtracks) break;
      searching = shorten<B>(searching, start, now, length, ws.searching.data());
      monitor.count_evaluations(searching, 1);
    }
    B::copy(a, trial, z);
    const BatchView<S> result = ws.compact_f.batch(z.dim, a.count);
    B::gather(a, f, result);
    return result;
  }

  /// Those whose step is not accepted; theirs is shortened.
  template <Backend B>
  Samples shorten(Samples a, const typename B::Scalar* start, const typename B::Scalar* now,
                  typename B::Scalar* length, Index* ids) const {
    const Armijo rule = *this;
    const Samples searching = B::filter(
        a, [=] DEQ_HOST_DEVICE(Index s) { return !rule.accepts(length[s], start[s], now[s]); },
        ids);
    B::for_each(searching, [=] DEQ_HOST_DEVICE(Index s) {
      length[s] = rule.shorter(length[s], start[s], now[s]);
    });
    return searching;
  }
  template <class S>
  DEQ_HOST_DEVICE bool accepts(S t, S start_squared, S now_squared) const {
    return now_squared <= (1 - 2 * static_cast<S>(c) * t) * start_squared;
  }
  template <class S>
  DEQ_HOST_DEVICE S shorter(S t, S start_squared, S now_squared) const {
    // phi(0), phi'(0) = -2 phi(0) and phi(t) determine the parabola; its minimum is at factor * t.
    const S factor = start_squared * t / (now_squared - start_squared + 2 * start_squared * t);
    if (!(factor > S(0.1))) return t * S(0.1);
    return t * (factor > S(0.5) ? S(0.5) : factor);
  }
};

}  // namespace deq
