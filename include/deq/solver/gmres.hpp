// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <limits>

#include <deq/solver/concept.hpp>
#include <deq/solver/small_dense.hpp>

namespace deq {

namespace detail {

/// One cycle of Arnoldi for every sample: an orthonormal basis V of the Krylov space, and the least
/// squares min ||beta e_1 - Hbar y||, Hbar made triangular by plane rotations as it grows.
template <Backend B>
class Arnoldi {
  using S = typename B::Scalar;

 public:
  void prepare(Index dim, Index restart, Index count) {
    m_ = restart;
    basis_.basis(dim, m_ + 1, count);
    v_.batch(dim, count);
    w_.batch(dim, count);
    hessenberg_.resize(count * (m_ + 1) * m_);
    rotations_.resize(count * m_ * 2);
    rhs_.resize(count * (m_ + 1));
    for (Array<B>* c : {&first_, &second_}) c->resize(count * (m_ + 1));
    for (Array<B>* x : {&number_, &zero_, &target_}) x->resize(count);
    for (Array<B, Index>* x : {&rank_, &columns_, &ids_}) x->resize(count);
    dim_ = dim;
    count_ = count;
  }
  /// The newest basis vector, not yet stored, and where (I - A) times it belongs.
  BatchView<S> v() const { return {v_.data(), dim_, count_}; }
  BatchView<S> w() const { return {w_.data(), dim_, count_}; }

  /// v_0 = g / ||g||; gg and ff are the squared norms of g and f.
  void begin(Samples a, const Stopping& rule, BatchView<const S> g, const S* gg, const S* ff) {
    const Index m = m_;
    S *number = number_.data(), *zero = zero_.data(), *rhs = rhs_.data(), *target = target_.data();
    Index *rank = rank_.data(), *columns = columns_.data();
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
    B::axpby(a, number, g, zero, v());
  }
  /// Stores v as basis vector j.
  void store(Samples growing) {
    S* number = number_.data();
    Index* rank = rank_.data();
    B::for_each(growing, [=] DEQ_HOST_DEVICE(Index s) { number[s] = 1; });
    B::store(growing, number, v(), basis(), rank);
    B::for_each(growing, [=] DEQ_HOST_DEVICE(Index s) { ++rank[s]; });
  }
  /// Makes w orthogonal to v_0 .. v_j, which is column j of Hbar, and v_j+1 of it. Returns who goes
  /// on: whose residual estimate does not meet the tolerance, if he is still `in_budget`.
  Samples grow(Samples growing, Index j, InBudget in_budget) {
    const Index m = m_;
    S *number = number_.data(), *zero = zero_.data(), *rhs = rhs_.data(), *target = target_.data();
    S *first = first_.data(), *second = second_.data();
    S *hessenberg = hessenberg_.data(), *rotations = rotations_.data();
    Index *rank = rank_.data(), *columns = columns_.data();
    const BatchView<S> w = this->w();

    for (S* c : {first, second}) {
      B::project(growing, BasisView<const S>(basis()), rank, w, c);
      B::for_each(growing, [=] DEQ_HOST_DEVICE(Index s) {
        for (Index i = 0; i < rank[s]; ++i) c[s * (m + 1) + i] = -c[s * (m + 1) + i];
      });
      B::combine(growing, BasisView<const S>(basis()), rank, c, S(1), BatchView<const S>(w), w);
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
                 std::abs(rhs[s * (m + 1) + j + 1]) > target[s] && in_budget(s);
        },
        ids_.data());
    B::axpby(growing, number, BatchView<const S>(w), zero, v());
    return growing;
  }
  /// z <- z + V y.
  void correct(Samples a, BatchView<S> z) {
    const Index m = m_;
    S *rhs = rhs_.data(), *hessenberg = hessenberg_.data();
    Index* columns = columns_.data();
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      S* y = rhs + s * (m + 1);
      detail::solve_upper(hessenberg + s * m * (m + 1), m + 1, columns[s], y);
    });
    B::combine(a, BasisView<const S>(basis()), columns, rhs, S(1), BatchView<const S>(z), z);
  }

 private:
  BasisView<S> basis() const { return {basis_.data(), dim_, m_ + 1}; }

  Index dim_ = 0, m_ = 0, count_ = 0;
  Array<B> basis_, v_, w_, hessenberg_, rotations_, rhs_, first_, second_, number_, zero_, target_;
  Array<B, Index> rank_, columns_, ids_;
};

}  // namespace detail

/// Restarted GMRES (Saad and Schultz, 1986) for the affine fixed point z = A z + b, that is for the
/// linear system (I - A) z = b, each sample a problem of its own:
///
///     z = z_0 + V y,   y = argmin || ||r_0|| e_1 - Hbar y ||,   (I - A) V_n = V_{n+1} Hbar
///
/// Arnoldi with classical Gram-Schmidt, twice; Hbar by plane rotations. One iteration is one
/// product with A. Within a cycle a sample leaves when its residual estimate meets the tolerance;
/// at the end of each cycle the true residual is computed (one evaluation) and judged by
/// `stopping`, where the relative residual is ||g(z)|| / (||f(z)|| + 1e-9). What a sample has of
/// stopping.max_iterations is spent on its own products. Works with Scope::sample only.
///
/// Memory: (restart + 1) D numbers a sample. Leaves no inverse behind.
struct Gmres {
  Stopping stopping = {};
  Index restart = 20;  ///< m, products a cycle; there is room for max_iterations at most

  template <class B>
  using Inverse = NoInverse;

  template <class B>
  struct Workspace {
    SolveReport report;

   private:
    friend struct Gmres;
    Monitor<B> monitor;
    Evaluator<B> evaluate;
    Array<B> g, product;
    detail::Arnoldi<B> krylov;
  };

  template <KeepInverse keep = KeepInverse::no, AffineMap Map, class Observer = NoObserver>
  void solve(Map& f, BatchView<typename Map::Backend::Scalar> z,
             Workspace<typename Map::Backend>& ws, Observer&& observer = {}) const {
    detail::check_observer<Observer>();
    using B = typename Map::Backend;
    static_assert(keep == KeepInverse::no, "deq: Gmres leaves no inverse Jacobian behind");
    validate();
    const auto g = ws.g.batch(z.dim, z.count);
    Samples active = ws.monitor.start(stopping, z.dim, z.count);
    const auto judge = [&] {  // the products have been counted one by one
      ws.monitor.judge(active, 0, ws.evaluate(f, active, z), z, g, observer);
      active = ws.monitor.running(active);
    };
    judge();
    B::repeat(active, [&] {
      cycle<B>(f, active, g, z, ws);
      judge();
    });
    ws.monitor.finish(z, ws.report);
  }

  void validate() const {
    require(restart >= 1, "Gmres: restart must be >= 1, got ", restart);
    require(stopping.scope == Scope::sample, "Gmres: works with Scope::sample only");
  }

 private:
  /// Arnoldi's steps from the residual g, `restart` of them or what is left, then z <- z + V y.
  template <class B, class Map>
  void cycle(Map& f, Samples a, BatchView<typename B::Scalar> g, BatchView<typename B::Scalar> z,
             Workspace<B>& ws) const {
    using S = typename B::Scalar;
    const Index n = std::min<Index>(restart, stopping.max_iterations);
    detail::Arnoldi<B>& krylov = ws.krylov;
    krylov.prepare(z.dim, n, z.count);
    krylov.begin(a, stopping, g, ws.monitor.g_squared(), ws.monitor.f_squared());
    Samples growing = a;
    for (Index j = 0; j < n && !B::empty(growing); ++j) {
      krylov.store(growing);
      // w = (I - A) v_j
      const BatchView<S> product = ws.product.batch(z.dim, growing.count);
      f.linear(growing, ws.evaluate.compact(growing, krylov.v()), product);
      B::scatter(growing, product, krylov.w());
      B::axpby(growing, S(1), BatchView<const S>(krylov.v()), S(-1), krylov.w());
      ws.monitor.count_steps(growing);
      growing = krylov.grow(growing, j, ws.monitor.in_budget());
    }
    krylov.correct(a, z);
  }
};

}  // namespace deq
