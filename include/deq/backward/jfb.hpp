// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backward/concept.hpp>

namespace deq {

/// Jacobian-free backpropagation: w = h, the zeroth term of the Neumann series of (I - J^T)^-1.
/// Costs nothing. Fung et al., "JFB: Jacobian-Free Backpropagation for Implicit Networks", AAAI
/// 2022.
struct Jfb {
  static constexpr bool needs_inverse = false;

  template <class B>
  struct Workspace {
    AdjointReport report;
  };

  template <class B, Linearization<B> Jacobian, class Inverse>
  void adjoint(Samples everybody, Jacobian&, const Inverse*, BatchView<const typename B::Scalar> h,
               BatchView<typename B::Scalar> w, Workspace<B>& ws) const {
    detail::start_report<B>(ws.report, h.count, 0);
    B::copy(everybody, h, w);
  }
};

}  // namespace deq
