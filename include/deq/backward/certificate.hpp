// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include <deq/backward/concept.hpp>

namespace deq {

/// Scratch of `certify`.
template <class B>
struct CertificateWorkspace {
  Array<B> residual, r_squared, h_squared;
  std::vector<typename B::Scalar> host;
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
  ws.r_squared.resize(h.count);
  ws.h_squared.resize(h.count);
  jacobian.vjp(everybody, w, r);
  B::axpby(everybody, S(-1), w, S(1), r);
  B::axpby(everybody, S(1), h, S(1), r);
  B::dot(everybody, r, r, ws.r_squared.data());
  B::dot(everybody, h, h, ws.h_squared.data());
  const auto count = static_cast<std::size_t>(h.count);
  ws.host.resize(2 * count);
  B::download_bytes(ws.host.data(), ws.r_squared.data(), count * sizeof(S));
  B::download_bytes(ws.host.data() + count, ws.h_squared.data(), count * sizeof(S));
  B::when_done([&ws, &report] {
    const std::size_t samples = report.samples.size();
    for (std::size_t s = 0; s < samples; ++s) {
      const double h_norm = std::sqrt(static_cast<double>(ws.host[samples + s]));
      const double r_norm = std::sqrt(static_cast<double>(ws.host[s]));
      report.samples[s].residual = h_norm > 0 ? r_norm / h_norm : r_norm;
    }
  });
}

}  // namespace deq
