// SPDX-License-Identifier: MIT
// Where solvers and differentiation meet: a map that can be evaluated, and linearised at a point.
#pragma once

#include <concepts>

#include <deq/core/types.hpp>

namespace deq {

/// f of the fixed point z = f(z), for a batch. `evaluate(a, Z, F)` writes F_j = f_{a[j]}(Z_j):
/// column j of the two compact batches belongs to sample a[j], which tells f what else to use (that
/// sample's input, its dropout mask). Z and F do not overlap. Samples must not influence each
/// other. A map may offer f.value(a, Z) beside it, which returns F in memory of its own.
template <class M>
concept FixedPointMap = requires(M& f, Samples a, BatchView<const typename M::Backend::Scalar> z,
                                 BatchView<typename M::Backend::Scalar> out) {
  typename M::Backend;
  { f.dim() } -> std::convertible_to<Index>;
  f.evaluate(a, z, out);
};

/// J = df/dz at the point where it was taken. `vjp(a, W, out)` writes out_j = J_{a[j]}^T W_j, any
/// number of times. The first product may be what records f: it is asked for outside of B::repeat.
template <class L, class B>
concept Linearization = requires(L& jacobian, Samples a, BatchView<const typename B::Scalar> w,
                                 BatchView<typename B::Scalar> out) {
  jacobian.vjp(a, w, out);
};

/// A map that can be linearised: `linearize(Z)` at one point a sample, for the whole batch.
template <class M>
concept LinearizableMap = FixedPointMap<M> &&
    requires(M& f, BatchView<const typename M::Backend::Scalar> z) {
  { f.linearize(z) } -> Linearization<typename M::Backend>;
};

/// A fixed-point map of the form f(z) = A z + b that also offers A alone: `linear(a, Z, AZ)`.
template <class M>
concept AffineMap = FixedPointMap<M> &&
    requires(M& f, Samples a, BatchView<const typename M::Backend::Scalar> z,
             BatchView<typename M::Backend::Scalar> out) {
  f.linear(a, z, out);
};

}  // namespace deq
