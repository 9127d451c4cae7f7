// SPDX-License-Identifier: MIT
#pragma once

#include <deq/core/bfloat16.hpp>
#include <deq/core/error.hpp>
#include <deq/inverse/concept.hpp>
#include <deq/inverse/low_rank_pairs.hpp>

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
/// Cost of an iteration with n steps: two passes over them, 2 n D numbers, and 7 D more: `residual`
/// reads f, z, S and writes g; `advance` reads g, S, z and writes s, z. That is half the memory of
/// the pairs. It needs unit steps, and when it is full it can restart or freeze: dropping the
/// oldest factor is not what dropping a pair means.
///
/// Steps may be stored as `Stored` = Bfloat16, a half or a quarter of the memory and of the
/// traffic. The step that is taken is the one that is stored, so it is known exactly; what is
/// rounded, to 8 bits, is where H would have led.
template <Backend B, class Stored = typename B::Scalar>
class BroydenSteps {
  using S = typename B::Scalar;

 public:
  static constexpr bool is_quasi_newton = true;
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

  /// g = f - z with its norms, and S^T g for `advance`.
  void residual(Samples a, BatchView<const S> f, BatchView<const S> z, BatchView<S> g, S* g_squared,
                S* f_squared, Workspace& ws) const {
    B::residual(a, f, z, g, g_squared, f_squared, steps(), stored_.data(), ws.products.data());
  }

  /// The first step, z <- z + g, which `plan` has found to be that.
  void begin(Samples a, BatchView<const S> g, BatchView<S>, BatchView<S> z, Workspace& ws) {
    step(a, g, z, ws);
  }
  /// The next step, and with it the update, see QuasiNewtonInverse.
  void advance(Samples a, WhenFull, BatchView<const S> g, BatchView<S>, BatchView<S> z, const S*,
               bool*, Workspace& ws) {
    step(a, g, z, ws);
  }

 public:  // for nvcc, which accepts no device lambda in a private function
  /// The coefficients c of the next step, and where it is kept. A vanishing denominator breaks the
  /// chain of steps: H returns to -I. Overwrites S^T g with S^T (g - S c).
  void plan(Samples a, WhenFull when_full, bool* skipped, Workspace& ws) {
    const Index capacity = memory_ + 1;
    S* products = ws.products.data();
    S* coefficients = ws.coefficients.data();
    S* scale = ws.scale.data();
    const S* gram = gram_.data();
    Index* used = ws.used.data();
    Index* slot = ws.slot.data();
    const Index* stored = stored_.data();

    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      const Index n = stored[s];
      const S* G = gram + s * capacity * capacity;
      S* r = products + s * capacity;
      S* c = coefficients + s * capacity;
      bool full = n == capacity, safe = true;
      used[s] = slot[s] = n;
      scale[s] = 1;
      if (n > 0) {
        Forward{}(G, capacity, n, r, c);
        // (1 + c_T+1) ||s_T||^2, where r holds S^T g - G c
        const S newest = G[(n - 1) * (capacity + 1)], denominator = newest - r[n - 1];
        safe = full || detail::safe_denominator(denominator, newest);
        if (!full) scale[s] = newest / denominator;
        if (full) slot[s] = -1;
      }
      if (!safe || (full && when_full == WhenFull::restart)) {
        used[s] = slot[s] = 0;
        scale[s] = 1;
      }
      for (Index i = 0; i < used[s]; ++i) c[i] *= -scale[s];
      skipped[s] = !safe;
    });
  }
  /// The step that has been planned.
  void step(Samples a, BatchView<const S> g, BatchView<S> z, Workspace& ws) {
    const Index capacity = memory_ + 1;
    const S* products = ws.products.data();
    S* coefficients = ws.coefficients.data();
    S* scale = ws.scale.data();
    S* squared = ws.squared.data();
    S* gram = gram_.data();
    Index* used = ws.used.data();
    Index* slot = ws.slot.data();
    Index* stored = stored_.data();
    // s = scale (g - S c), z <- z + s
    B::extend(a, steps(), used, coefficients, scale, g, slot, z, squared);
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      const Index n = slot[s];
      if (n < 0) return;
      S* G = gram + s * capacity * capacity;
      for (Index i = 0; i < n; ++i)
        G[i * capacity + n] = G[n * capacity + i] = scale[s] * products[s * capacity + i];
      G[n * (capacity + 1)] = squared[s];
      stored[s] = n + 1;
    });
  }

  /// r -= factor row, n numbers, several of them read before one is written: a device's thread
  /// waits for its loads together.
  DEQ_HOST_DEVICE static void subtract(S* __restrict__ r, S factor, const S* __restrict__ row,
                                       Index n) {
    constexpr int at_once = 8;
    for (Index i = 0; i < n; i += at_once) {
      S rest[at_once];
      for (int k = 0; k < at_once; ++k) rest[k] = i + k < n ? r[i + k] - factor * row[i + k] : S(0);
      for (int k = 0; k < at_once; ++k)
        if (i + k < n) r[i + k] = rest[k];
    }
  }
  /// The recurrence of H x for n steps: on entry r = S^T x, on return r = S^T (x - S c).
  struct Forward {
    DEQ_HOST_DEVICE void operator()(const S* __restrict__ G, Index ld, Index n, S* __restrict__ r,
                                    S* __restrict__ c) const {
      c[0] = 0;
      for (Index t = 0; t + 1 < n; ++t) {
        const S next = c[t + 1] = -r[t] / G[t * (ld + 1)];
        subtract(r, next, G + (t + 1) * ld, n);
      }
    }
  };
  /// The same of H^T x, with the sign of c turned: H^T x = -x + S c.
  struct Transposed {
    DEQ_HOST_DEVICE void operator()(const S* __restrict__ G, Index ld, Index n, S* __restrict__ r,
                                    S* __restrict__ c) const {
      c[n - 1] = 0;
      for (Index t = n - 2; t >= 0; --t) {
        const S next = c[t] = -r[t + 1] / G[t * (ld + 1)];
        subtract(r, next, G + t * ld, n);
      }
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
  void product_of_block(Samples a, BatchView<const S> x, BatchView<S> y, S* r, S* c,
                        Recurrence recurrence) const {
    const Index capacity = memory_ + 1;
    const S* gram = gram_.data();
    const Index* stored = stored_.data();
    B::project(a, steps(), stored, x, r);
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      if (stored[s] > 0)
        recurrence(gram + s * capacity * capacity, capacity, stored[s], r + s * capacity,
                   c + s * capacity);
    });
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
