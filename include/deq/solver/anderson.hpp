// SPDX-License-Identifier: MIT
#pragma once

#include <limits>

#include <deq/inverse/multisecant.hpp>
#include <deq/solver/concept.hpp>
#include <deq/solver/small_dense.hpp>

namespace deq {

/// Anderson acceleration (type II) with a QR factorisation that is updated, never recomputed
/// (Walker and Ni, "Anderson Acceleration for Fixed-Point Iterations", SIAM J. Numer. Anal. 49,
/// 2011), each sample a problem of its own. With the last n <= memory differences dG = Q R of
/// residuals and dZ of iterates:
///
///     gamma = argmin ||g - dG gamma||^2 + lambda ||gamma||^2
///     lambda = regularization max_i |R_ii|^2
///     z <- z + beta g - (dZ + beta dG) gamma
///
/// A new column is orthogonalised twice (classical Gram-Schmidt); the oldest is removed by plane
/// rotations of Q and R, when the memory is full or nothing remains of the new one. Normal
/// equations are never formed, so that the condition number is not squared. The first step is a
/// damped fixed-point step.
///
/// Cost: one evaluation of f and about eight passes over n D numbers a step. Memory: 2 m D numbers
/// a sample, and 7 D.
struct Anderson {
  static constexpr bool judges_last = true;

  Stopping stopping = {};
  Index memory = 6;               ///< m, differences kept
  double beta = 1;                ///< mixing
  double regularization = 1e-12;  ///< relative ridge

  template <class B>
  using Inverse = Multisecant<B>;

  template <class B>
  struct Workspace {
    SolveReport report;
    Multisecant<B> inverse;

   private:
    friend struct Anderson;
    Monitor<B> monitor;
    Evaluator<B> evaluate;
    Array<B> g, g_last, z_last, dg, dy, r, gamma, work, numbers;
    Array<B, Index> ids, accepted, learning;
    Array<B, bool> skipped;
  };

  template <KeepInverse keep = KeepInverse::yes, FixedPointMap Map, class Observer = NoObserver>
  void solve(Map& f, BatchView<typename Map::Backend::Scalar> z,
             Workspace<typename Map::Backend>& ws, Observer&& observer = {}) const {
    detail::check_observer<Observer>();
    using B = typename Map::Backend;
    using S = typename B::Scalar;
    validate();
    Multisecant<B>& h = ws.inverse;
    h.prepare(z.dim, memory, z.count, static_cast<S>(beta));
    const BatchView<S> g = ws.g.batch(z.dim, z.count), g_last = ws.g_last.batch(z.dim, z.count),
                       z_last = ws.z_last.batch(z.dim, z.count);
    ws.r.resize(z.count * memory * memory);
    ws.gamma.resize(z.count * memory);
    ws.learning.resize(z.count);
    Samples active = ws.monitor.start(stopping, z.dim, z.count);
    h.reset(active);
    const auto judge = [&] {
      ws.monitor.judge(active, 1, ws.evaluate(f, active, z), z, g, observer);
    };
    judge();
    active = ws.monitor.running(active);
    B::repeat(active, [&] {
      B::copy(active, z, z_last);
      B::copy(active, g, g_last);
      mix<B>(active, g, z, ws);
      judge();
      if (memory > 0) {
        const Samples learning =
            ws.monitor.learning(active, keep == KeepInverse::yes, ws.learning.data());
        remember<B>(learning, z, g, z_last, g_last, ws);
        B::for_each_team(learning, ws.monitor.count_skipped(ws.skipped.data()));
      }
      active = ws.monitor.running(active);
    });
    if constexpr (keep == KeepInverse::yes) implied_inverse<B>(ws.monitor.everybody(), ws);
    ws.monitor.finish(z, ws.report);
  }

  void validate() const {
    require(memory >= 0, "Anderson: memory must be >= 0, got ", memory);
    require(beta > 0, "Anderson: beta must be > 0, got ", beta);
    require(regularization >= 0, "Anderson: regularization must be >= 0, got ", regularization);
  }

 public:  // for nvcc, which accepts no device lambda in a private function
  /// The regularised least squares of all samples.
  template <class S>
  struct LeastSquares {
    const S* r;
    S* work;
    const Index* rank;
    Index m;
    S regularization;

    /// lambda of sample s.
    DEQ_HOST_DEVICE S ridge(Index s) const {
      const S* rs = r + s * m * m;
      S largest = 0;
      for (Index i = 0; i < rank[s]; ++i)
        largest = std::abs(rs[i + i * m]) > largest ? std::abs(rs[i + i * m]) : largest;
      return regularization * largest * largest;
    }
    /// c <- argmin ||R c - b||^2 + lambda ||c||^2 of sample s, for b given in c.
    DEQ_HOST_DEVICE void solve(Index s, S lambda, S* c) const {
      detail::solve_ridge(r + s * m * m, m, rank[s], lambda, c, work + s * m * (m + 1));
    }
  };
  template <class B>
  LeastSquares<typename B::Scalar> least_squares(Index count, Workspace<B>& ws) const {
    ws.work.resize(count * memory * (memory + 1));
    return {ws.r.data(), ws.work.data(), ws.inverse.ranks(), memory,
            static_cast<typename B::Scalar>(regularization)};
  }

  /// z <- z + beta g - Y gamma.
  template <class B>
  void mix(Samples a, BatchView<typename B::Scalar> g, BatchView<typename B::Scalar> z,
           Workspace<B>& ws) const {
    using S = typename B::Scalar;
    const Multisecant<B>& h = ws.inverse;
    const LeastSquares<S> squares = least_squares(g.count, ws);
    S* gamma = ws.gamma.data();
    B::project(a, BasisView<const S>(h.q_basis()), h.ranks(), g, gamma);
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      S* c = gamma + s * squares.m;
      squares.solve(s, squares.ridge(s), c);
      for (Index i = 0; i < squares.rank[s]; ++i) c[i] = -c[i];
    });
    B::axpby(a, static_cast<S>(beta), BatchView<const S>(g), S(1), z);
    B::combine(a, BasisView<const S>(h.y_basis()), h.ranks(), ws.gamma.data(), S(1),
               BatchView<const S>(z), z);
  }

  /// Takes the differences of the last step into Q, R and Y.
  template <class B>
  void remember(Samples a, BatchView<typename B::Scalar> z, BatchView<typename B::Scalar> g,
                BatchView<typename B::Scalar> z_last, BatchView<typename B::Scalar> g_last,
                Workspace<B>& ws) const {
    using S = typename B::Scalar;
    Multisecant<B>& h = ws.inverse;
    const BatchView<S> dg = ws.dg.batch(g.dim, g.count), dy = ws.dy.batch(g.dim, g.count);
    const Index m = memory;
    ws.numbers.resize(4 * g.count + 2 * g.count * m);
    ws.ids.resize(g.count);
    ws.accepted.resize(g.count);
    ws.skipped.resize(g.count);
    S* number = ws.numbers.data();
    S* before = number + g.count;
    S* cosine = before + g.count;
    S* sine = cosine + g.count;
    S* projection = sine + g.count;
    S* correction = projection + g.count * m;
    S* r = ws.r.data();
    Index* rank = h.ranks();

    const auto no_room = [=] DEQ_HOST_DEVICE(Index s) { return rank[s] == m; };
    forget_oldest<B>(B::filter(a, no_room, ws.ids.data()), cosine, sine, ws);

    // dg = g - g_last, dy = (z - z_last) + beta dg
    B::copy(a, g, dg);
    B::axpby(a, S(-1), BatchView<const S>(g_last), S(1), dg);
    B::copy(a, z, dy);
    B::axpby(a, S(-1), BatchView<const S>(z_last), S(1), dy);
    B::axpby(a, static_cast<S>(beta), BatchView<const S>(dg), S(1), dy);

    // dg <- (I - Q Q^T) dg, twice. Where nothing remains of it, the oldest column makes room.
    B::dot(a, dg, dg, before);
    bool* skipped = ws.skipped.data();
    Samples pending = a;
    for (Index attempt = 0; attempt <= m && !B::empty(pending); ++attempt) {
      for (S* c : {projection, correction}) {
        B::project(pending, BasisView<const S>(h.q_basis()), rank, dg, c);
        B::for_each(pending, [=] DEQ_HOST_DEVICE(Index s) {
          for (Index i = 0; i < rank[s]; ++i) c[s * m + i] = -c[s * m + i];
        });
        B::combine(pending, BasisView<const S>(h.q_basis()), rank, c, S(1), BatchView<const S>(dg),
                   dg);
      }
      B::dot(pending, dg, dg, number);
      B::for_each(pending, [=] DEQ_HOST_DEVICE(Index s) {
        // What is left of a dependent column is rounding noise of this size.
        const S noise = 16 * std::numeric_limits<S>::epsilon() * std::sqrt(before[s]);
        const S norm = std::sqrt(number[s]);
        skipped[s] = !(norm > noise);
        S* column = r + s * m * m + rank[s] * m;
        for (Index i = 0; i < rank[s]; ++i)
          column[i] = -(projection[s * m + i] + correction[s * m + i]);
        column[rank[s]] = norm;
        number[s] = 1 / norm;
      });
      const Samples accepted = B::filter(
          pending, [=] DEQ_HOST_DEVICE(Index s) { return !skipped[s]; }, ws.accepted.data());
      B::for_each(accepted, [=] DEQ_HOST_DEVICE(Index s) { cosine[s] = 1; });
      B::store(accepted, number, dg, h.q_basis(), rank);
      B::store(accepted, cosine, dy, h.y_basis(), rank);
      B::for_each(accepted, [=] DEQ_HOST_DEVICE(Index s) { ++rank[s]; });
      pending = B::filter(
          pending, [=] DEQ_HOST_DEVICE(Index s) { return skipped[s] && rank[s] > 0; },
          ws.ids.data());
      forget_oldest<B>(pending, cosine, sine, ws);
      B::copy(pending, g, dg);
      B::axpby(pending, S(-1), BatchView<const S>(g_last), S(1), dg);
    }
  }

  /// Drops column 0 of dG = Q R and of Y: R loses its first column and becomes upper Hessenberg;
  /// rotations of neighbouring rows, and of the columns of Q, make it triangular again.
  template <class B>
  void forget_oldest(Samples a, typename B::Scalar* cosine, typename B::Scalar* sine,
                     Workspace<B>& ws) const {
    using S = typename B::Scalar;
    if (B::empty(a)) return;
    Multisecant<B>& h = ws.inverse;
    const Index m = memory;
    S* r = ws.r.data();
    Index* rank = h.ranks();
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      S* rs = r + s * m * m;
      const Index n = rank[s];
      for (Index j = 0; j < m; ++j)
        for (Index i = 0; i < m; ++i)
          rs[i + j * m] = j + 1 < n && i <= j + 1 ? rs[i + (j + 1) * m] : S(0);
    });
    for (Index i = 0; i + 1 < m; ++i) {
      B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
        S* rs = r + s * m * m;
        const auto rotation = detail::Rotation<S>::eliminating(rs[i + i * m], rs[i + 1 + i * m]);
        for (Index j = i; j + 1 < m; ++j) rotation.apply(rs[i + j * m], rs[i + 1 + j * m]);
        cosine[s] = rotation.c;
        sine[s] = rotation.s;
      });
      B::rotate(a, h.q_basis(), i, cosine, sine);
    }
    // Y has no factorisation to keep: its columns move up by one place, as cyclic rotations.
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      cosine[s] = 0;
      sine[s] = 1;
    });
    for (Index i = 0; i + 1 < m; ++i) B::rotate(a, h.y_basis(), i, cosine, sine);
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) { --rank[s]; });
  }

  /// M of the inverse, column by column.
  template <class B>
  void implied_inverse(Samples a, Workspace<B>& ws) const {
    using S = typename B::Scalar;
    const LeastSquares<S> squares = least_squares(a.count, ws);
    S* inverse = ws.inverse.m();
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      const S lambda = squares.ridge(s);
      for (Index j = 0; j < squares.rank[s]; ++j) {
        S* column = inverse + (s * squares.m + j) * squares.m;
        for (Index i = 0; i < squares.rank[s]; ++i) column[i] = i == j;
        squares.solve(s, lambda, column);
      }
    });
  }
};

}  // namespace deq
