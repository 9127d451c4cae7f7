// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backward/concept.hpp>
#include <deq/core/error.hpp>

namespace deq {

/// Neumann-series phantom gradient:
///
///     w = lambda sum_{i<k} (M^T)^i h,   M = lambda J + (1 - lambda) I,
///
/// which tends to (I - J)^-T h as k grows if the spectral radius of M is below 1; k = 1, lambda = 1
/// is Jfb. Costs k - 1 VJPs. Geng et al., "On Training Implicit Models", NeurIPS 2021 (k = 5,
/// lambda = 0.5).
struct Npg {
  static constexpr bool needs_inverse = false;

  int k = 5;
  double lambda = 0.5;

  template <class B>
  struct Workspace {
    AdjointReport report;
    Array<B> product;
  };

  template <class B, Linearization<B> Jacobian, class Inverse>
  void adjoint(Samples everybody, Jacobian& jacobian, const Inverse*,
               BatchView<const typename B::Scalar> h, BatchView<typename B::Scalar> w,
               Workspace<B>& ws) const {
    using S = typename B::Scalar;
    require(k >= 1, "Npg: k must be >= 1, got ", k);
    require(lambda > 0 && lambda <= 1, "Npg: lambda must be in (0, 1], got ", lambda);
    const BatchView<S> product = ws.product.batch(h.dim, h.count);
    detail::start_report<B>(ws.report, h.count, k - 1);
    const S damping = static_cast<S>(lambda);
    // Horner: w <- M^T w + h, k - 1 times, then w <- lambda w
    B::copy(everybody, h, w);
    for (int i = 1; i < k; ++i) {
      jacobian.vjp(everybody, w, product);
      B::axpby(everybody, damping, product, 1 - damping, w);
      B::axpby(everybody, S(1), h, S(1), w);
    }
    B::axpby(everybody, damping - 1, BatchView<const S>(w), S(1), w);
  }
};

}  // namespace deq
