// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>

#include <deq/backward/concept.hpp>
#include <deq/core/error.hpp>

namespace deq {

/// The paper's idea: re-use the inverse Jacobian H ~ (J - I)^-1 that the forward solve has left
/// behind,
///
///     w = -H^T h.
///
/// Costs no VJP and one product with H^T. Nguyen and Mauch, section 3.3; the same estimate as SHINE
/// (Ramzi et al., ICLR 2022). H has learned how to act to the right along the path of the solve;
/// its action to the left need not tend to the exact one as the solve tightens, so ask for the
/// certificate or refine when in doubt.
///
/// Beyond the paper: refinement steps, one VJP each (one more in all for minimal_residual), with
/// rho = h - (I - J^T) w:
///
///     preconditioned     w <- w - H^T rho
///     neumann            w <- w + rho
///     minimal_residual   w <- w + t p, p = -H^T rho, t minimising ||rho - t (I - J^T) p||
///
/// and after them a guard that falls back to Jfb, w = h, for a sample whose w is not finite or has
/// ||w|| / ||h|| outside [min_norm_ratio, max_norm_ratio] (SHINE's code: 1.8).
struct Gdeq {
  static constexpr bool needs_inverse = true;

  enum class Refinement { preconditioned, neumann, minimal_residual };

  int refinements = 0;
  Refinement refinement = Refinement::preconditioned;
  double min_norm_ratio = 0;
  double max_norm_ratio = std::numeric_limits<double>::infinity();

  template <class B>
  struct Workspace {
    AdjointReport report;
    Array<B> rho, p, product, scratch, w_squared, h_squared, step;
    Array<B, Index> fallback;
  };

  template <class B, Linearization<B> Jacobian, InverseJacobian<B> Inverse>
  void adjoint(Samples everybody, Jacobian& jacobian, const Inverse* inverse,
               BatchView<const typename B::Scalar> h, BatchView<typename B::Scalar> w,
               Workspace<B>& ws) const {
    using S = typename B::Scalar;
    validate();
    detail::start_report<B>(ws.report, h.count, 0);
    inverse->apply_transpose(everybody, h, w, ws.scratch);
    B::axpby(everybody, S(-2), BatchView<const S>(w), S(1), w);  // w <- -w
    ws.w_squared.resize(h.count);
    ws.h_squared.resize(h.count);
    if (refinement == Refinement::minimal_residual)
      minimise_residual(everybody, jacobian, *inverse, h, w, ws);
    else
      correct(everybody, jacobian, *inverse, h, w, ws);
    guard(everybody, h, w, ws);
  }

  void validate() const {
    require(refinements >= 0, "Gdeq: refinements must be >= 0, got ", refinements);
    require(min_norm_ratio >= 0, "Gdeq: min_norm_ratio must be >= 0, got ", min_norm_ratio);
    require(max_norm_ratio >= min_norm_ratio, "Gdeq: max_norm_ratio must be >= min_norm_ratio, ",
            min_norm_ratio, ", got ", max_norm_ratio);
  }

 public:  // for nvcc, which accepts no device lambda in a private function
  template <class B>
  void guard(Samples everybody, BatchView<const typename B::Scalar> h,
             BatchView<typename B::Scalar> w, Workspace<B>& ws) const {
    using S = typename B::Scalar;
    ws.fallback.resize(h.count);
    B::dot(everybody, w, w, ws.w_squared.data());
    B::dot(everybody, h, h, ws.h_squared.data());
    const S* ww = ws.w_squared.data();
    const S* hh = ws.h_squared.data();
    const double low = min_norm_ratio, high = max_norm_ratio;
    const Samples fallback = B::filter(
        everybody,
        [=] DEQ_HOST_DEVICE(Index s) {
          const double w_norm = std::sqrt(static_cast<double>(ww[s]));
          const double h_norm = std::sqrt(static_cast<double>(hh[s]));
          if (!std::isfinite(w_norm)) return true;
          return h_norm > 0 && !(w_norm >= low * h_norm && w_norm <= high * h_norm);
        },
        ws.fallback.data());
    B::copy(fallback, h, w);
    B::when_downloaded(fallback.id, fallback.count, [&report = ws.report](auto ids) {
      for (const Index s : ids)
        if (s >= 0) report.samples[static_cast<std::size_t>(s)].fell_back = true;
    });
  }

 private:
  /// rho = h - w + J^T w
  template <class B, class Jacobian>
  static BatchView<typename B::Scalar> adjoint_residual(Samples everybody, Jacobian& jacobian,
                                                        BatchView<const typename B::Scalar> h,
                                                        BatchView<typename B::Scalar> w,
                                                        Workspace<B>& ws) {
    using S = typename B::Scalar;
    const BatchView<S> rho = ws.rho.batch(h.dim, h.count);
    jacobian.vjp(everybody, w, rho);
    B::axpby(everybody, S(-1), BatchView<const S>(w), S(1), rho);
    B::axpby(everybody, S(1), h, S(1), rho);
    B::when_done([&report = ws.report] { report.count_vjps(1); });
    return rho;
  }

  template <class B, class Jacobian, class Inverse>
  void correct(Samples everybody, Jacobian& jacobian, const Inverse& inverse,
               BatchView<const typename B::Scalar> h, BatchView<typename B::Scalar> w,
               Workspace<B>& ws) const {
    using S = typename B::Scalar;
    for (int i = 0; i < refinements; ++i) {
      const BatchView<S> rho = adjoint_residual<B>(everybody, jacobian, h, w, ws);
      if (refinement == Refinement::neumann) {
        B::axpby(everybody, S(1), BatchView<const S>(rho), S(1), w);
      } else {
        const BatchView<S> p = ws.p.batch(h.dim, h.count);
        inverse.apply_transpose(everybody, rho, p, ws.scratch);
        B::axpby(everybody, S(-1), BatchView<const S>(p), S(1), w);
      }
    }
  }

 public:  // for nvcc, as above; nor one where a type of the caller's is a template argument
  /// t = rho . q / ||q||^2, and -t.
  template <class B>
  static void minimising_step(Samples everybody, const typename B::Scalar* rq,
                              const typename B::Scalar* qq, typename B::Scalar* step,
                              typename B::Scalar* minus) {
    using S = typename B::Scalar;
    B::for_each(everybody, [=] DEQ_HOST_DEVICE(Index s) {
      step[s] = qq[s] > 0 ? rq[s] / qq[s] : S(0);
      minus[s] = -step[s];
    });
  }

 private:
  template <class B, class Jacobian, class Inverse>
  void minimise_residual(Samples everybody, Jacobian& jacobian, const Inverse& inverse,
                         BatchView<const typename B::Scalar> h, BatchView<typename B::Scalar> w,
                         Workspace<B>& ws) const {
    using S = typename B::Scalar;
    if (refinements == 0) return;
    const BatchView<S> rho = adjoint_residual<B>(everybody, jacobian, h, w, ws);
    const BatchView<S> p = ws.p.batch(h.dim, h.count), q = ws.product.batch(h.dim, h.count);
    ws.step.resize(3 * h.count);
    S* step = ws.step.data();
    S* minus = step + h.count;
    S* one = minus + h.count;
    B::fill(one, h.count, S(1));
    for (int i = 0; i < refinements; ++i) {
      // p = -H^T rho (its sign cancels in t p), q = (I - J^T) p
      inverse.apply_transpose(everybody, rho, p, ws.scratch);
      jacobian.vjp(everybody, p, q);
      B::axpby(everybody, S(1), BatchView<const S>(p), S(-1), q);
      B::when_done([&report = ws.report] { report.count_vjps(1); });
      B::dot(everybody, rho, q, ws.w_squared.data());
      B::dot(everybody, q, q, ws.h_squared.data());
      minimising_step<B>(everybody, ws.w_squared.data(), ws.h_squared.data(), step, minus);
      B::axpby(everybody, step, BatchView<const S>(p), one, w);
      B::axpby(everybody, minus, BatchView<const S>(q), one, rho);
    }
  }
};

}  // namespace deq
