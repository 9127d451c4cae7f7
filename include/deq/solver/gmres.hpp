// SPDX-License-Identifier: MIT
#pragma once

#include <limits>

#include <deq/solver/concept.hpp>
#include <deq/solver/small_dense.hpp>

namespace deq {

/// Restarted GMRES (Saad and Schultz, 1986) for the affine fixed point z = A z + b, that is for the
/// linear system (I - A) z = b, each sample a problem of its own:
///
///     z = z_0 + V y,   y = argmin || ||r_0|| e_1 - Hbar y ||,   (I - A) V_n = V_{n+1} Hbar
///
/// Arnoldi with classical Gram-Schmidt, twice; Hbar by plane rotations. One iteration is one
/// product with A. Within a cycle a sample leaves when its residual estimate meets the tolerance;
/// at the end of each cycle the true residual is computed (one evaluation) and judged by
/// `stopping`, where the relative residual is ||g(z)|| / ||f(z)||. stopping.max_iterations counts
/// products.
///
/// Memory: (restart + 1) D numbers a sample. Leaves no inverse behind.
struct Gmres {
  Stopping stopping = {};
  Index restart = 20;

  template <class B>
  using Inverse = NoInverse;

  template <class B>
  struct Workspace {
    SolveReport report;

   private:
    friend struct Gmres;
    Monitor<B> monitor;
    Evaluator<B> evaluate;
    Array<B> g, v, w, product, basis, hessenberg, rotations, rhs, coefficients, numbers;
    Array<B, Index> rank, ids, columns;
  };

  template <KeepInverse keep = KeepInverse::no, AffineMap Map, class Observer = NoObserver>
  void solve(Map& f, BatchView<typename Map::Backend::Scalar> z,
             Workspace<typename Map::Backend>& ws, Observer&& observer = {}) const {
    detail::check_observer<Observer>();
    using B = typename Map::Backend;
    static_assert(keep == KeepInverse::no, "deq: Gmres leaves no inverse Jacobian behind");
    require(restart >= 1, "Gmres: restart must be >= 1, got ", restart);
    const auto g = ws.g.batch(z.dim, z.count);
    Samples active = ws.monitor.start(stopping, z.dim, z.count);
    const auto judge = [&](int steps) {
      ws.monitor.judge(active, steps, ws.evaluate(f, active, z), z, g, observer);
      active = ws.monitor.running(active);
    };
    judge(0);
    for (int k = 0; k < stopping.max_iterations && !B::empty(active);) {
      const int n = static_cast<int>(std::min<Index>(restart, stopping.max_iterations - k));
      cycle<B>(f, active, n, g, z, ws);
      k += n;
      judge(n);
    }
    ws.monitor.finish(z, ws.report);
  }

 public:  // for nvcc, which accepts no device lambda in a private function
  /// n steps of Arnoldi from the residual g, then z <- z + V y.
  template <class B, class Map>
  void cycle(Map& f, Samples a, Index n, BatchView<typename B::Scalar> g,
             BatchView<typename B::Scalar> z, Workspace<B>& ws) const {
    using S = typename B::Scalar;
    const Index m = restart, count = z.count;
    const BasisView<S> basis = ws.basis.basis(z.dim, m + 1, count);
    const BatchView<S> v = ws.v.batch(z.dim, count), w = ws.w.batch(z.dim, count);
    ws.hessenberg.resize(count * (m + 1) * m);
    ws.rotations.resize(count * m * 2);
    ws.rhs.resize(count * (m + 1));
    ws.coefficients.resize(2 * count * (m + 1));
    ws.numbers.resize(3 * count);
    ws.rank.resize(count);
    ws.columns.resize(count);
    ws.ids.resize(count);
    S* hessenberg = ws.hessenberg.data();
    S* rotations = ws.rotations.data();
    S* rhs = ws.rhs.data();
    S* first = ws.coefficients.data();
    S* second = first + count * (m + 1);
    S* number = ws.numbers.data();
    S* zero = number + count;
    S* target = zero + count;
    Index* rank = ws.rank.data();
    Index* columns = ws.columns.data();

    // v_0 = g / ||g||
    const S* gg = ws.monitor.g_squared();
    const S* ff = ws.monitor.f_squared();
    const Stopping rule = stopping;
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      const S beta = std::sqrt(gg[s]);
      number[s] = 1 / beta;
      zero[s] = 0;
      for (Index i = 0; i <= m; ++i) rhs[s * (m + 1) + i] = i == 0 ? beta : S(0);
      const double relative =
          rule.relative_tolerance * (std::sqrt(static_cast<double>(ff[s])) + 1e-9);
      target[s] =
          static_cast<S>(relative > rule.absolute_tolerance ? relative : rule.absolute_tolerance);
      rank[s] = 0;
      columns[s] = 0;
    });
    B::axpby(a, number, BatchView<const S>(g), zero, v);

    Samples growing = a;
    for (Index j = 0; j < n && !B::empty(growing); ++j) {
      B::for_each(growing, [=] DEQ_HOST_DEVICE(Index s) { number[s] = 1; });
      B::store(growing, number, v, basis, rank);
      B::for_each(growing, [=] DEQ_HOST_DEVICE(Index s) { ++rank[s]; });
      // w = (I - A) v_j, made orthogonal to v_0 .. v_j
      const BatchView<S> product = ws.product.batch(z.dim, growing.count);
      f.linear(growing, ws.evaluate.compact(growing, v), product);
      B::scatter(growing, product, w);
      B::axpby(growing, S(1), BatchView<const S>(v), S(-1), w);
      ws.monitor.count_evaluations(growing, 1);
      for (S* c : {first, second}) {
        B::project(growing, BasisView<const S>(basis), rank, w, c);
        B::for_each(growing, [=] DEQ_HOST_DEVICE(Index s) {
          for (Index i = 0; i < rank[s]; ++i) c[s * (m + 1) + i] = -c[s * (m + 1) + i];
        });
        B::combine(growing, BasisView<const S>(basis), rank, c, S(1), BatchView<const S>(w), w);
      }
      B::dot(growing, w, w, number);
      B::for_each(growing, [=] DEQ_HOST_DEVICE(Index s) {
        const S norm = std::sqrt(number[s]);
        S* h = hessenberg + (s * m + j) * (m + 1);
        S* rotation = rotations + s * m * 2;
        S* b = rhs + s * (m + 1);
        for (Index i = 0; i <= j; ++i) h[i] = -(first[s * (m + 1) + i] + second[s * (m + 1) + i]);
        h[j + 1] = norm;
        S column_squared = 0;
        for (Index i = 0; i <= j + 1; ++i) column_squared += h[i] * h[i];
        for (Index i = 0; i < j; ++i)
          detail::Rotation<S>{rotation[2 * i], rotation[2 * i + 1]}.apply(h[i], h[i + 1]);
        const auto last = detail::Rotation<S>::eliminating(h[j], h[j + 1]);
        last.apply(h[j], h[j + 1]);
        last.apply(b[j], b[j + 1]);
        rotation[2 * j] = last.c;
        rotation[2 * j + 1] = last.s;
        // A singular (I - A) shows as a pivot of rounding noise: that direction is left out.
        const S noise = 4 * std::numeric_limits<S>::epsilon() * std::sqrt(column_squared);
        columns[s] = std::abs(h[j]) > noise ? j + 1 : j;
        number[s] = 1 / norm;
      });
      growing = B::filter(
          growing,
          [=] DEQ_HOST_DEVICE(Index s) {
            return std::isfinite(number[s]) && columns[s] == j + 1 &&
                   std::abs(rhs[s * (m + 1) + j + 1]) > target[s];
          },
          ws.ids.data());
      B::axpby(growing, number, BatchView<const S>(w), zero, v);
    }

    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      S* y = rhs + s * (m + 1);
      detail::solve_upper(hessenberg + s * m * (m + 1), m + 1, columns[s], y);
    });
    B::combine(a, BasisView<const S>(basis), columns, rhs, S(1), BatchView<const S>(z), z);
  }
};

}  // namespace deq
