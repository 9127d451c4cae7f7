// SPDX-License-Identifier: MIT
#pragma once

#include <deq/core/error.hpp>
#include <deq/inverse/concept.hpp>

namespace deq {

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
/// m D numbers (V^T g in the pass that forms g), and about 20 D. Memory: 2 m D numbers a sample.
template <Backend B>
class LowRankPairs {
  using S = typename B::Scalar;

 public:
  static constexpr bool keeps_direction = false;

  /// Scratch of a solve, shared by all samples.
  struct Workspace {
    Array<B> q, g_coefficients, d_coefficients, last_coefficients, numbers;
    Array<B, Index> used, slot;
    Array<B, bool> learning;
  };

  void prepare(Index dim, Index memory, Index count, Workspace& ws) {
    require(memory >= 0, "LowRankPairs: memory must be >= 0, got ", memory);
    dim_ = dim;
    memory_ = memory;
    u_.basis(dim, memory, count);
    v_.basis(dim, memory, count);
    rank_.resize(count);
    head_.resize(count);
    ws.q.batch(dim, count);
    for (Array<B>* c : {&ws.g_coefficients, &ws.d_coefficients, &ws.last_coefficients})
      c->resize(count * memory);
    ws.numbers.resize(9 * count);
    for (Array<B, Index>* x : {&ws.used, &ws.slot}) x->resize(count);
    ws.learning.resize(count);
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

  /// g = f - z with its norms, and V^T g for `advance`.
  template <class Then>
  void residual(Samples a, const BroydenIteration<S>& it, Then then, Workspace& ws) const {
    B::residual(a, it.f, it.z, it.g, it.g_squared, it.f_squared, v(), rank_.data(),
                ws.g_coefficients.data(), then);
  }

  /// Where the pair of this step is kept: nowhere if there is no memory, H is frozen or starts
  /// afresh.
  struct Plan {
    Index memory;
    WhenFull when_full;
    Index *rank, *head, *used, *slot;
    bool *learning, *skipped;

    template <class Team>
    DEQ_HOST_DEVICE void operator()(Index s, bool learns, const Team& team) const {
      if (team.rank > 0) return;
      const bool full = rank[s] == memory, restarts = when_full == WhenFull::restart;
      slot[s] = memory == 0 || (full && (restarts || when_full == WhenFull::freeze)) ? -1 : head[s];
      if (learns && full && restarts) rank[s] = head[s] = 0;
      used[s] = slot[s] < 0 ? 0 : rank[s];
      learning[s] = learns;
      skipped[s] = false;
    }
  };
  Plan plan(const BroydenIteration<S>& it, Workspace& ws) const {
    return {memory_,        it.when_full,   rank_.data(),       head_.data(),
            ws.used.data(), ws.slot.data(), ws.learning.data(), it.skipped};
  }

  /// The first direction d = g.
  template <class Then>
  void begin(Samples a, const BroydenIteration<S>& it, Then then, Workspace& ws) {
    const Samples learning = put_aside(a, it, ws);
    B::copy(learning, it.g, it.d);
    move(learning, it, then);
  }
  /// One Broyden update, see QuasiNewtonInverse. If the denominator vanishes the pair is left out;
  /// its slot then holds zeros.
  template <class Then>
  void advance(Samples a, const BroydenIteration<S>& it, Then then, Workspace& ws) {
    const Samples learning = put_aside(a, it, ws);
    update(learning, it.when_full, it.g, it.d, it.length, it.skipped, ws);
    move(learning, it, then);
  }

 private:
  BasisView<S> u() const { return {u_.data(), dim_, memory_}; }
  BasisView<S> v() const { return {v_.data(), dim_, memory_}; }

  template <class Then>
  static void move(Samples a, const BroydenIteration<S>& it, Then then) {
    if (it.moves) B::axpby(a, S(1), BatchView<const S>(it.d), S(1), it.z);
    B::for_each_team(a, then);
  }
  /// y = -x + right (left^T x); `coefficients` keeps left^T x.
  void product(Samples a, BasisView<const S> left, BasisView<const S> right, BatchView<const S> x,
               BatchView<S> y, Array<B>& coefficients) const {
    coefficients.resize(x.count * memory_);
    B::in_blocks(a.count, dim_ * (2 * memory_ + 1), [&](Index first, Index n) {
      const Samples block{a.id + first, n};
      B::project(block, left, rank_.data(), x, coefficients.data());
      B::combine(block, right, rank_.data(), coefficients.data(), S(-1), x, y);
    });
  }

 public:  // for nvcc, which accepts no device lambda in a private function
  /// The best iterates, before z moves. Returns who learns.
  Samples put_aside(Samples a, const BroydenIteration<S>& it, Workspace& ws) {
    B::copy(a, it.z, it.best, it.improved);
    const bool* learning = ws.learning.data();
    return B::filter(
        a, [=] DEQ_HOST_DEVICE(Index s) { return learning[s]; }, it.ids);
  }
  /// The numbers of one update, per sample.
  struct Scalars {
    S *dq, *dd;  // d . q, d . d
    S *u_from_d, *u_from_q, *u_from_oldest;
    S *next_from_u, *next_from_oldest;
    S *keep_u, *keep_v;
  };
  static Scalars scalars(const Array<B>& numbers) {
    const Index n = numbers.size() / 9;
    S* p = numbers.data();
    return {p, p + n, p + 2 * n, p + 3 * n, p + 4 * n, p + 5 * n, p + 6 * n, p + 7 * n, p + 8 * n};
  }

  /// Forms the pair of this step and the next direction.
  void update(Samples a, WhenFull when_full, BatchView<const S> g, BatchView<S> d, const S* length,
              bool* skipped, Workspace& ws) {
    const BatchView<S> q{ws.q.data(), g.dim, g.count};
    const BatchView<const S> cq = q, cd_batch = d;
    const Scalars n = scalars(ws.numbers);
    S* cg = ws.g_coefficients.data();
    S* cd = ws.d_coefficients.data();
    S* last = ws.last_coefficients.data();
    Index* rank = rank_.data();
    Index* head = head_.data();
    Index* used = ws.used.data();
    const Index* slot = ws.slot.data();
    const Index memory = memory_;
    const bool drop_first = when_full == WhenFull::discard_oldest_first;

    // V^T g is there, and U^T d. What the oldest pair contributes to them is set apart where it has
    // to go before the new pair is formed: n.u_from_oldest holds v_0 . g_old, n.next_from_oldest
    // u_0 . d.
    B::project(a, u(), used, d, cd);
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      const Index oldest = s * memory + head[s];
      const bool drops = slot[s] >= 0 && rank[s] == memory && drop_first;
      n.u_from_oldest[s] = drops ? last[oldest] : S(0);
      n.next_from_oldest[s] = drops ? cd[oldest] : S(0);
      if (drops) cg[oldest] = cd[oldest] = 0;
    });
    // q = H g
    B::combine(a, u(), rank, cg, S(-1), g, q);
    B::dot(a, d, q, n.dq);
    B::dot(a, d, d, n.dd);

    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      // H g_old = -d - kappa u_0, where kappa = v_0 . g_old if the oldest pair has just gone.
      const S kappa = n.u_from_oldest[s];
      const S dz_dg = length[s] * (n.dq[s] + n.dd[s] + kappa * n.next_from_oldest[s]);
      const bool updates = slot[s] >= 0;
      const bool safe = updates && detail::safe_denominator(dz_dg, length[s] * n.dd[s]);
      skipped[s] = updates && !safe;
      // u = (dz - H dg) / (v . dg) = ((length - 1) d - q - kappa u_0) / (v . dg)
      n.u_from_d[s] = safe ? (length[s] - 1) / dz_dg : S(0);
      n.u_from_q[s] = safe ? -1 / dz_dg : S(0);
      n.u_from_oldest[s] = safe ? -kappa / dz_dg : S(0);
      n.keep_u[s] = safe;
      // H_new g = q - (v_0 . g) u_0 + (v . g) u, the middle term if the oldest pair goes now.
      const Index oldest = s * memory + head[s];
      const bool drop_now = updates && rank[s] == memory && !drop_first;
      n.next_from_oldest[s] = drop_now ? -cg[oldest] : S(0);
      n.next_from_u[s] = safe ? -length[s] * n.dq[s] : S(0);
      // v = length H^T d = -length d + V (length U^T d), zeros where it is left out
      n.keep_v[s] = safe ? -length[s] : S(0);
      if (!safe) used[s] = 0;
      for (Index i = 0; i < used[s]; ++i) cd[s * memory + i] *= length[s];
      // V^T g with all pairs of the next step, for the day when the next oldest pair goes.
      if (!updates) return;
      for (Index i = 0; i < rank[s]; ++i) last[s * memory + i] = cg[s * memory + i];
      last[oldest] = safe ? length[s] * n.dq[s] : S(0);
    });
    B::extend(a, v(), used, cd, n.keep_v, cd_batch, slot);
    // d <- u, q <- H g without the oldest pair, then d <- -q - (v . g) u
    B::axpby(a, n.u_from_q, cq, n.u_from_d, d);
    B::accumulate(a, n.u_from_oldest, u(), head, d);
    B::accumulate(a, n.next_from_oldest, u(), head, q);
    B::store(a, n.keep_u, cd_batch, u(), slot);
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      n.dd[s] = -1;
      if (slot[s] < 0) return;
      head[s] = (head[s] + 1) % memory;
      rank[s] = rank[s] < memory ? rank[s] + 1 : memory;
    });
    B::axpby(a, n.dd, cq, n.next_from_u, d);
  }

 private:
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
