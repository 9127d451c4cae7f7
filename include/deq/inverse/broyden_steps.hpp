// SPDX-License-Identifier: MIT
#pragma once

#include <deq/core/bfloat16.hpp>
#include <deq/core/error.hpp>
#include <deq/inverse/concept.hpp>

namespace deq {

/// Broyden's inverse kept as its steps alone (Kelley, "Iterative Methods for Linear and Nonlinear
/// Equations", 1995, section 7.3): with unit steps s_0, s_1, ..., s_T,
///
///     H = - prod_{t = T-1 .. 0} (I + s_{t+1} s_t^T / ||s_t||^2),
///
/// equal in exact arithmetic to the pairs u_t = s_{t+1} / ||s_t||^2, v_t = H_t^T s_t of
/// LowRankPairs. With the Gram matrix G_ti = s_t . s_i a product is S^T x, a recurrence on T
/// numbers, and a combination of steps:
///
///     H x   = -x + sum_t c_t+1 s_t+1,  c_t+1 = (-s_t . x + sum_{i<=t} G_ti c_i) / G_tt
///     H^T x = -x - sum_t c_t s_t,      c_t = (s_t+1 . x + sum_{i>t} G_t+1,i c_i) / G_tt
///
/// One update with the next direction takes the first recurrence for x = g one row further, to
/// c_T+1 = s_T . q / ||s_T||^2, q = H g, where the new step is known from
///
///     s_T+1 = -H_T+1 g = -(q + c_T+1 s_T+1),  that is  s_T+1 = (g - S c) / (1 + c_T+1),
///     S^T s_T+1 = (S^T g - G c) / (1 + c_T+1)   the new column of G, already at hand.
///
///     | S    | D x (m + 1) a sample       | the steps, oldest first |
///     | Gram | (m + 1) x (m + 1) a sample | S^T S                   |
///     | rank | 1 a sample                 | factors = steps - 1     |
///
/// Cost of an iteration with n steps: two passes over them, 2 n D numbers, and 6 D more: `residual`
/// reads f, z and S; `advance` reads f, z and S, writes s, z, and the old z where it is the best so
/// far. That is half the memory of the pairs. It needs unit steps, and when it is full it can
/// restart or freeze: dropping the oldest factor is not what dropping a pair means.
///
/// Steps may be stored as `Stored` = Bfloat16, a half or a quarter of the memory and of the
/// traffic. The step that is taken is the one that is stored, so it is known exactly; what is
/// rounded, to 8 bits, is where H would have led.
template <Backend B, class Stored = typename B::Scalar>
class BroydenSteps {
  using S = typename B::Scalar;

 public:
  static constexpr bool keeps_direction = true;  ///< as the newest step

  /// Scratch of a solve, shared by all samples.
  struct Workspace {
    Array<B> products, coefficients, scale, squared;
    Array<B, Index> used, slot;
  };

  void prepare(Index dim, Index memory, Index count, Workspace& ws) {
    require(memory >= 0, "BroydenSteps: memory must be >= 0, got ", memory);
    dim_ = dim;
    memory_ = memory;
    steps_.basis(dim, memory + 1, count);
    gram_.resize(count * (memory + 1) * (memory + 1));
    stored_.resize(count);
    for (Array<B>* x : {&ws.products, &ws.coefficients}) x->resize(count * (memory + 1));
    for (Array<B>* x : {&ws.scale, &ws.squared}) x->resize(count);
    for (Array<B, Index>* x : {&ws.used, &ws.slot}) x->resize(count);
  }
  void reset(Samples a) {
    Index* stored = stored_.data();
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) { stored[s] = 0; });
  }

  Index dim() const { return dim_; }
  Index memory() const { return memory_; }
  /// Factors present for one sample; crosses to the host.
  Index rank(Index sample) const {
    Index n;
    B::download_bytes(&n, stored_.data() + sample, sizeof n);
    return n > 0 ? n - 1 : 0;
  }

  void apply(Samples a, BatchView<const S> x, BatchView<S> y, Array<B>& scratch) const {
    product(a, x, y, scratch, Forward{});
  }
  void apply_transpose(Samples a, BatchView<const S> x, BatchView<S> y, Array<B>& scratch) const {
    product(a, x, y, scratch, Transposed{});
  }

  /// The norms of f - z and f, and S^T (f - z) for `plan`.
  template <class Then>
  void residual(Samples a, const BroydenIteration<S>& it, Then then, Workspace& ws) const {
    B::residual(a, it.f, it.z, BatchView<S>{}, it.g_squared, it.f_squared, steps(), stored_.data(),
                ws.products.data(), then);
  }

  /// r -= factor row, n numbers.
  template <class Team>
  DEQ_HOST_DEVICE static void subtract(S* r, S factor, const S* row, Index n, const Team& team) {
    team.for_each(n, [=](Index i) { r[i] -= factor * row[i]; });
    team.sync();
  }
  /// The recurrence of H x for n steps: on entry r = S^T x, on return r = S^T (x - S c).
  struct Forward {
    template <class Team>
    DEQ_HOST_DEVICE void operator()(const S* G, Index ld, Index n, S* r, S* c,
                                    const Team& team) const {
      if (team.rank == 0) c[0] = 0;
      for (Index t = 0; t + 1 < n; ++t) {
        const S next = -r[t] / G[t * (ld + 1)];
        if (team.rank == 0) c[t + 1] = next;
        team.sync();  // r_t has been read
        subtract(r, next, G + (t + 1) * ld, n, team);
      }
    }
  };
  /// The same of H^T x, with the sign of c turned: H^T x = -x + S c.
  struct Transposed {
    template <class Team>
    DEQ_HOST_DEVICE void operator()(const S* G, Index ld, Index n, S* r, S* c,
                                    const Team& team) const {
      if (team.rank == 0) c[n - 1] = 0;
      for (Index t = n - 2; t >= 0; --t) {
        const S next = -r[t + 1] / G[t * (ld + 1)];
        if (team.rank == 0) c[t] = next;
        team.sync();
        subtract(r, next, G + t * ld, n, team);
      }
    }
  };

  /// The coefficients c of a sample's next step, and where it is kept. A vanishing denominator
  /// breaks the chain of steps: H returns to -I. Overwrites S^T g with S^T (g - S c).
  struct Plan {
    Index capacity;
    WhenFull when_full;
    const Index* stored;
    const S* gram;
    S *products, *coefficients, *scale;
    Index *used, *slot;
    bool* skipped;

    template <class Team>
    DEQ_HOST_DEVICE void operator()(Index s, bool learns, const Team& team) const {
      const Index n = learns ? stored[s] : 0;
      const S* G = gram + s * capacity * capacity;
      S* r = products + s * capacity;
      S* c = coefficients + s * capacity;
      const bool full = n == capacity;
      bool safe = true;
      S factor = 1;
      if (n > 0) {
        Forward{}(G, capacity, n, r, c, team);
        // (1 + c_T+1) ||s_T||^2, where r holds S^T g - G c
        const S newest = G[(n - 1) * (capacity + 1)], denominator = newest - r[n - 1];
        safe = full || detail::safe_denominator(denominator, newest);
        if (!full) factor = newest / denominator;
      }
      const bool afresh = !safe || (full && when_full == WhenFull::restart);
      if (afresh) factor = 1;
      const Index use = afresh ? 0 : n;
      team.for_each(use, [=](Index i) { c[i] *= -factor; });
      if (team.rank > 0) return;
      used[s] = use;
      slot[s] = !learns || (full && !afresh) ? -1 : use;
      scale[s] = learns ? factor : S(0);
      skipped[s] = !safe;
    }
  };
  Plan plan(const BroydenIteration<S>& it, Workspace& ws) const {
    return {memory_ + 1,     it.when_full,       stored_.data(),
            gram_.data(),    ws.products.data(), ws.coefficients.data(),
            ws.scale.data(), ws.used.data(),     ws.slot.data(),
            it.skipped};
  }

  /// The first step, z <- z + g, which `plan` has found to be that.
  template <class Then>
  void begin(Samples a, const BroydenIteration<S>& it, Then then, Workspace& ws) {
    advance(a, it, then, ws);
  }
  /// The step that has been planned, s = scale (g - S c), and with it the update, see
  /// QuasiNewtonInverse.
  template <class Then>
  void advance(Samples a, const BroydenIteration<S>& it, Then then, Workspace& ws) {
    S* scale = ws.scale.data();
    S* squared = ws.squared.data();
    Index* slot = ws.slot.data();
    B::step(a, steps(), ws.used.data(), ws.coefficients.data(), scale, it.f, slot, it.z, it.best,
            it.improved, squared,
            Keep<Then>{memory_ + 1, slot, ws.products.data(), scale, squared, gram_.data(),
                       stored_.data(), then});
  }
  /// The step that has been made is one of the steps, its column one of the Gram matrix.
  template <class Then>
  struct Keep {
    Index capacity;
    const Index* slot;
    const S *products, *scale, *squared;
    S* gram;
    Index* stored;
    Then then;

    template <class Team>
    DEQ_HOST_DEVICE void operator()(Index s, const Team& team) const {
      if (const Index n = slot[s]; n >= 0) {
        S* G = gram + s * capacity * capacity;
        const S* r = products + s * capacity;
        const Index ld = capacity;
        team.for_each(
            n, [=, factor = scale[s]](Index i) { G[i * ld + n] = G[n * ld + i] = factor * r[i]; });
        if (team.rank == 0) {
          G[n * (ld + 1)] = squared[s];
          stored[s] = n + 1;
        }
      }
      then(s, team);
    }
  };

  /// y = -x + S c, the coefficients c from `recurrence`(Gram, leading dimension, steps, S^T x, c).
  template <class Recurrence>
  void product(Samples a, BatchView<const S> x, BatchView<S> y, Array<B>& scratch,
               Recurrence recurrence) const {
    scratch.resize(2 * x.count * (memory_ + 1));
    S* r = scratch.data();
    S* c = r + x.count * (memory_ + 1);
    B::in_blocks(a.count, dim_ * (memory_ + 1), [&](Index first, Index n) {
      product_of_block({a.id + first, n}, x, y, r, c, recurrence);
    });
  }
  template <class Recurrence>
  struct OfSample {
    Index capacity;
    const Index* stored;
    const S* gram;
    S *r, *c;
    Recurrence recurrence;

    template <class Team>
    DEQ_HOST_DEVICE void operator()(Index s, const Team& team) const {
      if (stored[s] > 0)
        recurrence(gram + s * capacity * capacity, capacity, stored[s], r + s * capacity,
                   c + s * capacity, team);
    }
  };
  template <class Recurrence>
  void product_of_block(Samples a, BatchView<const S> x, BatchView<S> y, S* r, S* c,
                        Recurrence recurrence) const {
    const Index capacity = memory_ + 1;
    const S* gram = gram_.data();
    const Index* stored = stored_.data();
    B::project(a, steps(), stored, x, r);
    B::for_each_team(a, OfSample<Recurrence>{capacity, stored, gram, r, c, recurrence});
    B::combine(a, steps(), stored, c, S(-1), x, y);
  }

 private:
  BasisView<Stored> steps() const { return {steps_.data(), dim_, memory_ + 1}; }

  Index dim_ = 0, memory_ = 0;
  Array<B, Stored> steps_;
  Array<B> gram_;
  Array<B, Index> stored_;
};

/// Storage policy of Broyden: the steps and their Gram matrix, half the memory of Pairs.
struct StepsOnly {
  template <class B>
  using Inverse = BroydenSteps<B>;
  static constexpr bool needs_unit_steps = true;
  static constexpr WhenFull default_when_full = WhenFull::restart;
};
/// The same with the steps as bfloat16: half of that again where the scalar is float.
struct CompactSteps : StepsOnly {
  template <class B>
  using Inverse = BroydenSteps<B, Bfloat16>;
};

}  // namespace deq
