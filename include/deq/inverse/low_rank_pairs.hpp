// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>

#include <deq/core/error.hpp>
#include <deq/inverse/concept.hpp>

namespace deq {

namespace detail {
/// True if a rank-one update may divide by `denominator`, one of whose terms is `scale`.
template <class S>
DEQ_HOST_DEVICE bool safe_denominator(S denominator, S scale) {
  return std::isfinite(denominator) &&
         std::abs(denominator) > 4 * std::numeric_limits<S>::epsilon() * std::abs(scale);
}
}  // namespace detail

/// Broyden's inverse in the paper's form, the last m pairs of
///
///     H = -I + sum_i u_i v_i^T,   v = H^T dz,   u = (dz - H dg) / (v . dg)
///
/// (Sherman and Morrison; H before the update on the right-hand sides.) Because H g_old = -d for
/// the step direction d, no product with dg is ever formed: with q = H g_new and dz = length * d,
///
///     H dg = q + d,   v . dg = dz . (q + d).
///
///     | U, V | D x m a sample | ring buffers                                |
///     | rank | 1 a sample     | pairs present                               |
///     | head | 1 a sample     | slot of the next pair; the oldest when full |
///
/// One update with the next direction costs one product with H and one with H^T: four passes over
/// m D numbers. Memory: 2 m D numbers a sample.
template <Backend B>
class LowRankPairs {
  using S = typename B::Scalar;

 public:
  static constexpr bool is_quasi_newton = true;

  void prepare(Index dim, Index memory, Index count) {
    require(memory >= 0, "LowRankPairs: memory must be >= 0, got ", memory);
    dim_ = dim;
    memory_ = memory;
    u_.basis(dim, memory, count);
    v_.basis(dim, memory, count);
    rank_.resize(count);
    head_.resize(count);
  }
  /// H = -I for the given samples.
  void reset(Samples a) {
    Index* rank = rank_.data();
    Index* head = head_.data();
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) { rank[s] = head[s] = 0; });
  }

  Index dim() const { return dim_; }
  /// m, the pairs that fit.
  Index memory() const { return memory_; }
  /// Pairs present for one sample; crosses to the host.
  Index rank(Index sample) const {
    Index r;
    B::download_bytes(&r, rank_.data() + sample, sizeof r);
    return r;
  }

  /// y = H x = -x + U (V^T x).
  void apply(Samples a, BatchView<const S> x, BatchView<S> y, Array<B>& scratch) const {
    product(a, v(), u(), x, y, scratch);
  }
  /// y = H^T x = -x + V (U^T x).
  void apply_transpose(Samples a, BatchView<const S> x, BatchView<S> y, Array<B>& scratch) const {
    product(a, u(), v(), x, y, scratch);
  }

  /// Scratch of `advance`, shared by all samples of a solve.
  struct Workspace {
    Array<B> q, w, g_coefficients, d_coefficients, last_coefficients, numbers;
    Array<B, Index> full, open;
  };

  /// One Broyden update, see QuasiNewtonInverse. `g` is the new residual, `d` the direction of the
  /// step just made with the given lengths; on return d = -H g. skipped[s] tells whether the
  /// denominator vanished and the pair was left out (its slot then holds zeros).
  void advance(Samples a, WhenFull when_full, BatchView<const S> g, BatchView<S> d, const S* length,
               bool* skipped, Workspace& ws) {
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) { skipped[s] = false; });
    const bool discards =
        when_full == WhenFull::discard_oldest || when_full == WhenFull::discard_oldest_first;
    if (discards && memory_ > 0) return update(a, when_full, g, d, length, skipped, ws);

    const Index* rank = rank_.data();
    const Index memory = memory_;
    ws.full.resize(g.count);
    ws.open.resize(g.count);
    const Samples full = B::filter(
        a, [=] DEQ_HOST_DEVICE(Index s) { return rank[s] == memory; }, ws.full.data());
    const Samples open = B::filter(
        a, [=] DEQ_HOST_DEVICE(Index s) { return rank[s] < memory; }, ws.open.data());
    update(open, when_full, g, d, length, skipped, ws);
    if (when_full == WhenFull::restart) reset(full);
    descend(full, g, d, ws);
  }

 private:
  BasisView<S> u() const { return {u_.data(), dim_, memory_}; }
  BasisView<S> v() const { return {v_.data(), dim_, memory_}; }

  /// y = -x + right (left^T x); `coefficients` keeps left^T x.
  void product(Samples a, BasisView<const S> left, BasisView<const S> right, BatchView<const S> x,
               BatchView<S> y, Array<B>& coefficients) const {
    coefficients.resize(x.count * memory_);
    B::project(a, left, rank_.data(), x, coefficients.data());
    B::axpby(a, S(-1), x, S(0), y);
    B::combine(a, right, rank_.data(), coefficients.data(), y);
  }

 public:  // for nvcc, which accepts no device lambda in a private function
  /// The numbers of one update, per sample.
  struct Scalars {
    S *dq, *dd;  // d . q, d . d
    S *u_from_d, *u_from_q, *u_from_oldest;
    S *next_from_u, *next_from_oldest;
    S *keep_u, *keep_v;
  };
  static Scalars scalars(Array<B>& numbers, Index n) {
    numbers.resize(9 * n);
    S* p = numbers.data();
    return {p, p + n, p + 2 * n, p + 3 * n, p + 4 * n, p + 5 * n, p + 6 * n, p + 7 * n, p + 8 * n};
  }

  /// Forms the pair of this step and the next direction, for samples that have room for a pair or
  /// may drop their oldest.
  void update(Samples a, WhenFull when_full, BatchView<const S> g, BatchView<S> d, const S* length,
              bool* skipped, Workspace& ws) {
    if (a.empty()) return;
    const BatchView<S> q = ws.q.batch(g.dim, g.count), w = ws.w.batch(g.dim, g.count);
    const Scalars n = scalars(ws.numbers, g.count);
    ws.g_coefficients.resize(g.count * memory_);
    ws.d_coefficients.resize(g.count * memory_);
    ws.last_coefficients.resize(g.count * memory_);
    S* cg = ws.g_coefficients.data();
    S* cd = ws.d_coefficients.data();
    S* last = ws.last_coefficients.data();
    Index* rank = rank_.data();
    Index* head = head_.data();
    const Index memory = memory_;
    const bool drop_first = when_full == WhenFull::discard_oldest_first;

    // V^T g and U^T d. What the oldest pair contributes to them is set apart where it has to go
    // before the new pair is formed: n.u_from_oldest holds v_0 . g_old, n.next_from_oldest u_0 . d.
    B::project(a, v(), rank, g, cg);
    B::project(a, u(), rank, d, cd);
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      const Index oldest = s * memory + head[s];
      const bool full = rank[s] == memory;
      n.u_from_oldest[s] = full && drop_first ? last[oldest] : S(0);
      n.next_from_oldest[s] = full && drop_first ? cd[oldest] : S(0);
      if (full && drop_first) cg[oldest] = cd[oldest] = 0;
    });
    // q = H g, w = H^T d
    B::axpby(a, S(-1), g, S(0), q);
    B::combine(a, u(), rank, cg, q);
    B::axpby(a, S(-1), BatchView<const S>(d), S(0), w);
    B::combine(a, v(), rank, cd, w);
    B::dot(a, d, q, n.dq);
    B::dot(a, d, d, n.dd);

    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      // H g_old = -d - kappa u_0, where kappa = v_0 . g_old if the oldest pair has just gone.
      const S kappa = n.u_from_oldest[s];
      const S dz_dg = length[s] * (n.dq[s] + n.dd[s] + kappa * n.next_from_oldest[s]);
      const bool safe = detail::safe_denominator(dz_dg, length[s] * n.dd[s]);
      skipped[s] = !safe;
      // u = (dz - H dg) / (v . dg) = ((length - 1) d - q - kappa u_0) / (v . dg)
      n.u_from_d[s] = safe ? (length[s] - 1) / dz_dg : S(0);
      n.u_from_q[s] = safe ? -1 / dz_dg : S(0);
      n.u_from_oldest[s] = safe ? -kappa / dz_dg : S(0);
      // H_new g = q - (v_0 . g) u_0 + (v . g) u, the middle term if the oldest pair goes now.
      const Index oldest = s * memory + head[s];
      const bool drop_now = rank[s] == memory && !drop_first;
      n.next_from_oldest[s] = drop_now ? -cg[oldest] : S(0);
      n.next_from_u[s] = -length[s] * n.dq[s];
      n.keep_u[s] = safe;
      n.keep_v[s] = safe ? length[s] : S(0);
      // V^T g with all pairs of the next step, for the day when the next oldest pair goes.
      for (Index i = 0; i < rank[s]; ++i) last[s * memory + i] = cg[s * memory + i];
      last[oldest] = safe ? length[s] * n.dq[s] : S(0);
    });
    // d <- u, q <- H g without the oldest pair, then d <- -q - (v . g) u
    B::axpby(a, n.u_from_q, BatchView<const S>(q), n.u_from_d, d);
    B::accumulate(a, n.u_from_oldest, u(), head, d);
    B::accumulate(a, n.next_from_oldest, u(), head, q);
    B::store(a, n.keep_u, d, u(), head);
    B::store(a, n.keep_v, w, v(), head);
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      n.dd[s] = -1;
      head[s] = (head[s] + 1) % memory;
      rank[s] = rank[s] < memory ? rank[s] + 1 : memory;
    });
    B::axpby(a, n.dd, BatchView<const S>(q), n.next_from_u, d);
  }

 private:
  /// d = -H g, without an update.
  void descend(Samples a, BatchView<const S> g, BatchView<S> d, Workspace& ws) const {
    const BatchView<S> q = ws.q.batch(g.dim, g.count);
    apply(a, g, q, ws.g_coefficients);
    B::axpby(a, S(-1), BatchView<const S>(q), S(0), d);
  }

  Index dim_ = 0, memory_ = 0;
  Array<B> u_, v_;
  Array<B, Index> rank_, head_;
};

/// Storage policy of Broyden: the paper's (u, v) pairs.
struct Pairs {
  template <class B>
  using Inverse = LowRankPairs<B>;
  static constexpr bool needs_unit_steps = false;
  static constexpr WhenFull default_when_full = WhenFull::discard_oldest;
};

}  // namespace deq
