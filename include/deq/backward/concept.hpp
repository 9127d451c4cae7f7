// SPDX-License-Identifier: MIT
// The backward pass of an equilibrium layer. With z* = f(z*, x, theta), J = df/dz at z* and h =
// dl/dz*, every method is one choice of an adjoint
//
//     w ~ (I - J)^-T h,    and then    dl/dtheta = (df/dtheta)^T w,   dl/dx = (df/dx)^T w,
//
// the same code for all (layer/equilibrium.hpp). Nguyen and Mauch, section 3.
#pragma once

#include <algorithm>
#include <concepts>

#include <deq/backend/array.hpp>
#include <deq/core/map.hpp>
#include <deq/core/report.hpp>
#include <deq/inverse/concept.hpp>

namespace deq {

/// What a backward pass reports of one sample.
struct AdjointSample {
  int vjps = 0;            ///< products J^T w spent on the adjoint, the certificate not counted
  bool fell_back = false;  ///< w = h, by which Gdeq's guard replaced what it had refined
  SolveStatus status = SolveStatus::converged;  ///< of Implicit's linear solve
  double residual = -1;  ///< ||h - (I - J^T) w|| / ||h|| if a certificate was asked for, else -1
};

/// What a backward pass reports: one entry a sample.
struct AdjointReport {
  PoolVector<AdjointSample> samples;

  Index fallbacks() const {
    return std::count_if(samples.begin(), samples.end(),
                         [](const AdjointSample& s) { return s.fell_back; });
  }
  /// NaN if any is.
  double worst_residual() const {
    double worst = -1;
    for (const AdjointSample& s : samples) worst = detail::worse(worst, s.residual);
    return worst;
  }
  double mean_vjps() const {
    double sum = 0;
    for (const AdjointSample& s : samples) sum += s.vjps;
    return samples.empty() ? 0 : sum / static_cast<double>(samples.size());
  }
  /// Starts a report of `count` samples.
  void reset(Index count) { samples.assign(static_cast<std::size_t>(count), {}); }
  void count_vjps(int n) {
    for (AdjointSample& s : samples) s.vjps += n;
  }
};

namespace detail {
/// Starts a report once the work so far is done: with so many samples, and products of each.
template <Backend B>
void start_report(AdjointReport& report, Index count, int vjps) {
  B::when_done([&report, count, vjps] {
    report.reset(count);
    report.count_vjps(vjps);
  });
}
}  // namespace detail

/// A backward policy: a copyable struct of hyperparameters with
///
///     static constexpr bool needs_inverse     the forward solve must leave its inverse behind
///     template <class B> struct Workspace     scratch and `AdjointReport report`
///     void adjoint(everybody, jacobian, inverse, h, w, ws) const      w_s from h_s for every
///     sample
template <class P>
concept BackwardPolicy = requires {
  { P::needs_inverse } -> std::convertible_to<bool>;
};

/// The equation of the adjoint as a fixed-point map, w = J^T w + h: what linear solvers are given.
template <Backend B, Linearization<B> Jacobian>
class AdjointMap {
  using S = typename B::Scalar;

 public:
  using Backend = B;

  /// `identity` lists the samples 0, 1, 2, ...; `scratch` holds h of the active samples.
  AdjointMap(Jacobian& jacobian, BatchView<const S> h, Samples identity, Array<B>& scratch)
      : jacobian_(jacobian), h_(h), identity_(identity), scratch_(scratch) {}

  Index dim() const { return h_.dim; }
  /// out_j = J^T w_j
  void linear(Samples a, BatchView<const S> w, BatchView<S> out) { jacobian_.vjp(a, w, out); }
  /// out_j = J^T w_j + h_a[j]
  void evaluate(Samples a, BatchView<const S> w, BatchView<S> out) {
    jacobian_.vjp(a, w, out);
    BatchView<const S> h = h_;
    if (a.count < h_.count) {
      const BatchView<S> packed = scratch_.batch(h_.dim, a.count);
      B::gather(a, h_, packed);
      h = packed;
    }
    B::axpby(Samples{identity_.id, a.count}, S(1), h, S(1), out);
  }

 private:
  Jacobian& jacobian_;
  BatchView<const S> h_;
  Samples identity_;
  Array<B>& scratch_;
};

}  // namespace deq
