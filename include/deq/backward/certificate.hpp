// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include <deq/backward/concept.hpp>
#include <deq/backward/unit_cotangent.hpp>

namespace deq {

/// Scratch of `certify`.
template <class B>
struct CertificateWorkspace {
  Array<B> residual, numbers;
};

/// The relative adjoint residual of every sample,
///
///     ||h - (I - J^T) w|| / ||h||,
///
/// written to the report. It bounds the relative error of w by ||(I - J)^-1|| times itself,
/// whatever policy made w: a cheap gradient says how good it is. Costs one VJP. A sample of which h
/// is 0 reports ||w - J^T w||.
template <Backend B, Linearization<B> Jacobian>
void certify(Samples everybody, Jacobian& jacobian, BatchView<const typename B::Scalar> h,
             BatchView<const typename B::Scalar> w, CertificateWorkspace<B>& ws,
             AdjointReport& report) {
  using S = typename B::Scalar;
  const BatchView<S> r = ws.residual.batch(h.dim, h.count);
  ws.numbers.resize(4 * h.count);
  S* r_squared = ws.numbers.data();
  S* h_squared = r_squared + h.count;
  S* scale = h_squared + h.count;
  S* zero = scale + h.count;
  B::fill(zero, h.count, S(0));
  detail::scale_safely<B>(everybody, Scope::sample, h, r, h_squared, scale, zero);
  jacobian.vjp(everybody, w, r);
  B::axpby(everybody, S(-1), w, S(1), r);
  B::axpby(everybody, S(1), h, S(1), r);
  B::axpby(everybody, scale, BatchView<const S>(r), zero, r);
  B::dot(everybody, r, r, r_squared);
  B::when_downloaded(r_squared, 2 * h.count, [&report](std::span<const S> squared) {
    const std::size_t count = squared.size() / 2;
    for (std::size_t s = 0; s < count; ++s) {
      const double r_norm = std::sqrt(static_cast<double>(squared[s]));
      const double h_norm = std::sqrt(static_cast<double>(squared[count + s]));
      report.samples[s].residual = h_norm > 0 ? r_norm / h_norm : r_norm;
    }
  });
}

}  // namespace deq
