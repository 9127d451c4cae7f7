// SPDX-License-Identifier: MIT
// The inverse Jacobian as an object. It is what a forward solve leaves behind, and what GDEQ uses.
#pragma once

#include <cmath>
#include <concepts>
#include <limits>
#include <vector>

#include <deq/backend/array.hpp>
#include <deq/backend/concept.hpp>

namespace deq {

/// H ~ (dg/dz)^-1 = (J - I)^-1, one per sample, for the residual g(z) = f(z) - z. With no knowledge
/// of J it is H = -I. Const and shareable: whatever a product needs beside H is passed in as
/// scratch.
///   apply            y_s = H_s x_s          (acts on residuals)
///   apply_transpose  y_s = H_s^T x_s        (acts on cotangents; the adjoint is w = -H^T h)
/// for whole batches x, y (D x B) that do not overlap.
template <class H, class B>
concept InverseJacobian = Backend<B> &&
    requires(const H& h, Samples a, BatchView<const typename B::Scalar> x,
             BatchView<typename B::Scalar> y, Array<B>& scratch) {
  { h.dim() } -> std::convertible_to<Index>;
  h.apply(a, x, y, scratch);
  h.apply_transpose(a, x, y, scratch);
};

/// What happens when a limited memory of m pairs is full.
enum class WhenFull {
  /// The new pair is formed with all m pairs, then the oldest is dropped: the paper's choice. H no
  /// longer meets the newest secant exactly.
  discard_oldest,
  /// The oldest pair is dropped first, then the new one is formed without it: the newest secant
  /// H dg = dz holds.
  discard_oldest_first,
  /// All pairs are dropped, H = -I, and the iteration starts afresh from the current iterate.
  restart,
  /// H stays as it is.
  freeze,
};

/// What an inverse sees of one iteration of Broyden's method, for whole batches but f.
template <class S>
struct BroydenIteration {
  BatchView<const S> f = {};  ///< f(z), compact
  BatchView<S> z;
  BatchView<S> g, d;         ///< f - z and the direction; empty if the inverse keeps_direction
  BatchView<S> best;         ///< where z is put aside before it moves,
  const bool* improved;      ///< for the samples where it is the best so far
  bool moves;                ///< z moves by d; a line search does that itself
  S *g_squared, *f_squared;  ///< ||g||^2, ||f||^2
  const S* length;           ///< z has moved by length_s d_s to where it is
  WhenFull when_full;
  bool* skipped;         ///< whether the update had to be left out
  Index* ids = nullptr;  ///< room for as many as there are samples at hand
};

/// An inverse that Broyden's method can build, step by step: see LowRankPairs and BroydenSteps. An
/// iteration `it` is
///   residual(a, it, then, ws)    g = f - z, its norms and those of f, and what `advance` can learn
///                                of g in the same pass; then then(s, team), see BackendPrimitives
///   plan(it, ws)                 a function plan(s, learns, team) of what the update and the step
///                                need of sample s that needs neither g nor z; samples that do not
///                                learn have finished, H stays as it is and z need not move
///   begin(a, it, then, ws)       the first time: z is put aside, d = g, z <- z + d
///   advance(a, it, then, ws)     after that: the rank-one update, z is put aside, d = -H g,
///                                z <- z + d
/// both of which end with then(s, team) for samples that learn, at least; then skipped_s tells
/// whether the update had to be left out. reset(a) is H = -I. Only prepare(dim, memory, count, ws)
/// allocates, and calls for different samples may be made at the same time. A constant
/// keeps_direction says that g and d need no memory of the solver's.
template <class H, class B>
concept QuasiNewtonInverse = InverseJacobian<H, B> &&
    requires(H& h, Samples a, Index n, const BroydenIteration<typename B::Scalar>& it,
             detail::AnySampleWork then, typename H::Workspace& ws) {
  { H::keeps_direction } -> std::convertible_to<bool>;
  { h.memory() } -> std::convertible_to<Index>;
  h.prepare(n, n, n, ws);
  h.reset(a);
  h.residual(a, it, then, ws);
  h.plan(it, ws);
  h.begin(a, it, then, ws);
  h.advance(a, it, then, ws);
};

namespace detail {
/// True if a rank-one update may divide by `denominator`, one of whose terms is `scale`.
template <class S>
DEQ_HOST_DEVICE bool safe_denominator(S denominator, S scale) {
  return std::isfinite(denominator) &&
         std::abs(denominator) > 4 * std::numeric_limits<S>::epsilon() * std::abs(scale);
}
}  // namespace detail

/// Sample s of an inverse as a dense column-major D x D matrix, on the host: for tests. Costs D
/// products.
template <Backend B, InverseJacobian<B> H>
std::vector<typename B::Scalar> to_dense(const H& h, Index sample) {
  using S = typename B::Scalar;
  const Index dim = h.dim();
  Array<B> x, y, scratch;
  const BatchView<S> unit = x.batch(dim, sample + 1), column = y.batch(dim, sample + 1);
  Array<B, Index> id(1);
  B::upload_bytes(id.data(), &sample, sizeof sample);
  std::vector<S> dense(static_cast<std::size_t>(dim * dim));
  const S one = 1;
  for (Index i = 0; i < dim; ++i) {
    B::fill(unit.col(sample), dim, 0);
    B::upload_bytes(unit.col(sample) + i, &one, sizeof one);
    h.apply({id.data(), 1}, unit, column, scratch);
    B::download_bytes(dense.data() + i * dim, column.col(sample),
                      static_cast<std::size_t>(dim) * sizeof(S));
  }
  return dense;
}

}  // namespace deq
