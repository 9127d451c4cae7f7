// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>

#include <deq/backend/array.hpp>
#include <deq/backend/concept.hpp>
#include <deq/solver/stopping.hpp>

namespace deq::detail {

/// The power of two by which a vector has to be multiplied so that the square of its norm is a
/// number of full precision, given what was computed of that square: 1 unless it has under- or
/// overflowed.
template <class S>
DEQ_HOST_DEVICE S safe_scale(S squared) {
  constexpr S least = std::numeric_limits<S>::min() / std::numeric_limits<S>::epsilon();
  if (squared < least) return 1 / least;
  return std::isinf(squared) ? least : S(1);
}

/// x_s = scale_s h_s, the scales as above (1 for h_s = 0), squared_s = ||x_s||^2; zero_s = 0. With
/// Scope::batch the norm is the batch's, and the scale everybody's.
template <Backend B>
void scale_safely(Samples everybody, Scope scope, BatchView<const typename B::Scalar> h,
                  BatchView<typename B::Scalar> x, typename B::Scalar* squared,
                  typename B::Scalar* scale, const typename B::Scalar* zero) {
  using S = typename B::Scalar;
  const auto square = [&](BatchView<const S> v) {
    B::dot(everybody, v, v, squared);
    if (scope == Scope::batch) share_sum<B>(everybody, everybody.id, squared);
  };
  square(h);
  B::for_each(everybody, [=] DEQ_HOST_DEVICE(Index s) { scale[s] = safe_scale(squared[s]); });
  B::axpby(everybody, scale, h, zero, x);
  square(x);
  B::for_each(everybody, [=] DEQ_HOST_DEVICE(Index s) {
    if (squared[s] == 0) scale[s] = 1;
  });
}

/// h / ||h|| of every sample. The adjoint is linear in h: what is found for the one is, times
/// ||h||, that of the other, but the tolerances of a solver know one size only.
template <Backend B>
class UnitCotangent {
  using S = typename B::Scalar;

 public:
  /// Returns h / ||h||, with Scope::batch that norm of the batch; 0 where h is 0.
  BatchView<const S> of(Samples everybody, BatchView<const S> h, Scope scope) {
    const BatchView<S> unit = unit_.batch(h.dim, h.count);
    numbers_.resize(4 * h.count);
    S* norm = numbers_.data();
    S* zero = norm + h.count;
    S* squared = zero + h.count;
    S* scale = squared + h.count;
    B::fill(zero, h.count, S(0));
    scale_safely<B>(everybody, scope, h, unit, squared, scale, zero);
    choose_norms(everybody, squared, scale, norm);
    B::axpby(everybody, scale, BatchView<const S>(unit), zero, unit);
    return unit;
  }
  /// w <- ||h|| w
  void scale_back(Samples everybody, BatchView<S> w) {
    const S* norm = numbers_.data();
    B::axpby(everybody, norm, BatchView<const S>(w), norm + w.count, w);
    if constexpr (B::whole_batches) unit_ = {};  // of a device, others may have the memory
  }

 public:  // for nvcc, which accepts no device lambda in a private function
  /// ||h_s||, and what scale_s h_s is still to be multiplied by; 1 where there is no norm.
  static void choose_norms(Samples everybody, const S* squared, S* scale, S* norm) {
    B::for_each(everybody, [=] DEQ_HOST_DEVICE(Index s) {
      const bool exists = squared[s] > 0 && std::isfinite(squared[s]);
      const S scaled_norm = exists ? std::sqrt(squared[s]) : S(1);
      norm[s] = scaled_norm / scale[s];
      scale[s] = 1 / scaled_norm;
    });
  }

 private:
  Array<B> unit_, numbers_;
};

}  // namespace deq::detail
