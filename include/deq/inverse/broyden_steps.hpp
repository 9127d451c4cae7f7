// SPDX-License-Identifier: MIT
#pragma once

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
/// LowRankPairs. A product needs one pass for S^T x, a recurrence on T numbers with the Gram matrix
/// S^T S, and one pass to add up:
///
///     H x   = -x + sum_t c_t s_{t+1},  c_t = (-s_t . x + sum_{i<t} (s_t . s_{i+1}) c_i) /
///     ||s_t||^2 H^T x = -x - sum_t c_t s_t,      c_t = (s_{t+1} . x + sum_{i>t} (s_{t+1} . s_i)
///     c_i) / ||s_t||^2
///
///     | S    | D x (m + 1) a sample       | the steps, oldest first |
///     | Gram | (m + 1) x (m + 1) a sample | S^T S                   |
///     | rank | 1 a sample                 | factors = steps - 1     |
///
/// One update with the next direction costs one product and the Gram column: three passes over one
/// array of (m + 1) D numbers, half the memory of the pairs. It needs unit steps, and when it is
/// full it can restart or freeze: dropping the oldest factor is not what dropping a pair means.
template <Backend B>
class BroydenSteps {
  using S = typename B::Scalar;

 public:
  static constexpr bool is_quasi_newton = true;

  void prepare(Index dim, Index memory, Index count) {
    require(memory >= 0, "BroydenSteps: memory must be >= 0, got ", memory);
    dim_ = dim;
    memory_ = memory;
    steps_.basis(dim, memory + 1, count);
    gram_.resize(count * (memory + 1) * (memory + 1));
    stored_.resize(count);
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

  /// Scratch of `advance`, shared by all samples of a solve.
  struct Workspace {
    Array<B> q, coefficients, numbers;
    Array<B, Index> ids;
  };

  /// One Broyden update, see QuasiNewtonInverse; `length` must be 1. A vanishing denominator breaks
  /// the chain of steps: H returns to -I.
  void advance(Samples a, WhenFull when_full, BatchView<const S> g, BatchView<S> d, const S*,
               bool* skipped, Workspace& ws) {
    const BatchView<S> q = ws.q.batch(g.dim, g.count);
    ws.ids.resize(g.count);
    ws.numbers.resize(3 * g.count);
    S* dq = ws.numbers.data();
    S* dd = dq + g.count;
    S* next_from_q = dd + g.count;
    Index* stored = stored_.data();
    const Index capacity = memory_ + 1;

    const Samples first = B::filter(
        a, [=] DEQ_HOST_DEVICE(Index s) { return stored[s] == 0; }, ws.ids.data());
    append(first, d, ws);

    // s_new = -H_new g = -q / (1 + d . q / d . d) with q = H g
    apply(a, g, q, ws.coefficients);
    B::dot(a, d, q, dq);
    B::dot(a, d, d, dd);
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      const bool full = stored[s] == capacity;
      const bool safe = detail::safe_denominator(dq[s] + dd[s], dd[s]);
      skipped[s] = !full && !safe;
      next_from_q[s] = full || !safe ? S(-1) : -dd[s] / (dd[s] + dq[s]);
      if (skipped[s] || (full && when_full == WhenFull::restart)) stored[s] = 0;
    });
    const Samples restarted = B::filter(
        a, [=] DEQ_HOST_DEVICE(Index s) { return stored[s] == 0; }, ws.ids.data());
    B::copy(restarted, g, q);
    B::for_each(restarted, [=] DEQ_HOST_DEVICE(Index s) { next_from_q[s] = 1; });
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) { dq[s] = 0; });
    B::axpby(a, next_from_q, BatchView<const S>(q), dq, d);

    const Samples extended = B::filter(
        a, [=] DEQ_HOST_DEVICE(Index s) { return stored[s] > 0 && stored[s] < capacity; },
        ws.ids.data());
    append(extended, d, ws);
  }

 public:  // for nvcc, which accepts no device lambda in a private function
  /// The recurrence of H x: from the n products sx = S^T x the coefficients of the steps.
  struct Forward {
    DEQ_HOST_DEVICE void operator()(const S* G, Index width, Index n, const S* sx, S* c) const {
      // c[t + 1] multiplies s_{t+1}.
      c[0] = 0;
      for (Index t = 0; t + 1 < n; ++t) {
        S sum = -sx[t];
        for (Index i = 1; i <= t; ++i) sum += G[t * width + i] * c[i];
        c[t + 1] = sum / G[t * width + t];
      }
    }
  };
  /// The same of H^T x.
  struct Transposed {
    DEQ_HOST_DEVICE void operator()(const S* G, Index width, Index n, const S* sx, S* c) const {
      // -c[t] is the c_t of the formula above; it multiplies s_t.
      c[n - 1] = 0;
      for (Index t = n - 2; t >= 0; --t) {
        S sum = sx[t + 1];
        for (Index i = t + 1; i < n - 1; ++i) sum -= G[(t + 1) * width + i] * c[i];
        c[t] = -sum / G[t * width + t];
      }
    }
  };

  /// y = -x + S c, the coefficients c from `recurrence`(Gram, width, steps, S^T x, c).
  template <class Recurrence>
  void product(Samples a, BatchView<const S> x, BatchView<S> y, Array<B>& scratch,
               Recurrence recurrence) const {
    const Index width = memory_ + 1;
    scratch.resize(2 * x.count * width);
    S* sx = scratch.data();
    S* c = sx + x.count * width;
    const S* gram = gram_.data();
    const Index* stored = stored_.data();
    B::project(a, steps(), stored, x, sx);
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      if (stored[s] > 0)
        recurrence(gram + s * width * width, width, stored[s], sx + s * width, c + s * width);
    });
    B::axpby(a, S(-1), x, S(0), y);
    B::combine(a, steps(), stored, c, y);
  }

  /// Stores d as the newest step and extends the Gram matrix.
  void append(Samples a, BatchView<const S> d, Workspace& ws) {
    if (a.empty()) return;
    const Index width = memory_ + 1;
    ws.coefficients.resize(2 * d.count * width);
    S* sd = ws.coefficients.data();
    S* one = sd + d.count * width;
    S* gram = gram_.data();
    Index* stored = stored_.data();
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) { one[s] = 1; });
    B::store(a, one, d, steps(), stored);
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) { ++stored[s]; });
    B::project(a, steps(), stored, d, sd);
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      S* G = gram + s * width * width;
      const Index newest = stored[s] - 1;
      for (Index i = 0; i < stored[s]; ++i)
        G[i * width + newest] = G[newest * width + i] = sd[s * width + i];
    });
  }

 private:
  BasisView<S> steps() const { return {steps_.data(), dim_, memory_ + 1}; }

  Index dim_ = 0, memory_ = 0;
  Array<B> steps_, gram_;
  Array<B, Index> stored_;
};

/// Storage policy of Broyden: the steps and their Gram matrix, half the memory of Pairs.
struct StepsOnly {
  template <class B>
  using Inverse = BroydenSteps<B>;
  static constexpr bool needs_unit_steps = true;
  static constexpr WhenFull default_when_full = WhenFull::restart;
};

}  // namespace deq
