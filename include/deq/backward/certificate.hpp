// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include <deq/backward/concept.hpp>

namespace deq {

/// Scratch of `certify`.
template <class B>
struct CertificateWorkspace {
  Array<B> residual, squared;
};

/// The relative adjoint residual of every sample,
///
///     ||h - (I - J^T) w|| / ||h||,
///
/// written to the report. It bounds the relative error of w by ||(I - J)^-1|| times itself,
/// whatever policy made w: a cheap gradient says how good it is. Costs one VJP.
template <Backend B, Linearization<B> Jacobian>
void certify(Samples everybody, Jacobian& jacobian, BatchView<const typename B::Scalar> h,
             BatchView<const typename B::Scalar> w, CertificateWorkspace<B>& ws,
             AdjointReport& report) {
  using S = typename B::Scalar;
  const BatchView<S> r = ws.residual.batch(h.dim, h.count);
  ws.squared.resize(2 * h.count);
  jacobian.vjp(everybody, w, r);
  B::axpby(everybody, S(-1), w, S(1), r);
  B::axpby(everybody, S(1), h, S(1), r);
  B::dot(everybody, r, r, ws.squared.data());
  B::dot(everybody, h, h, ws.squared.data() + h.count);
  B::when_downloaded(ws.squared.data(), 2 * h.count, [&report](std::span<const S> squared) {
    const std::size_t count = squared.size() / 2;
    for (std::size_t s = 0; s < count; ++s) {
      const double r_norm = std::sqrt(static_cast<double>(squared[s]));
      const double h_norm = std::sqrt(static_cast<double>(squared[count + s]));
      report.samples[s].residual = h_norm > 0 ? r_norm / h_norm : r_norm;
    }
  });
}

}  // namespace deq
