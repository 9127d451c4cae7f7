// SPDX-License-Identifier: MIT
// The small dense algebra that one sample of a solver needs: plane rotations and triangular systems
// of a handful of numbers. Plain loops, so that they also run inside a kernel.
#pragma once

#include <cmath>

#include <deq/core/types.hpp>

namespace deq::detail {

/// The rotation that maps (a, b) to (r, 0): r = c a + s b, 0 = -s a + c b.
template <class S>
struct Rotation {
  S c, s;

  DEQ_HOST_DEVICE static Rotation eliminating(S a, S b) {
    const S r = std::hypot(a, b);
    return r > 0 ? Rotation{a / r, b / r} : Rotation{S(1), S(0)};
  }
  DEQ_HOST_DEVICE void apply(S& x, S& y) const {
    const S x0 = x;
    x = c * x0 + s * y;
    y = c * y - s * x0;
  }
};

/// x <- R^-1 x, R upper triangular n x n, column-major with the given leading dimension.
template <class S>
DEQ_HOST_DEVICE void solve_upper(const S* r, Index ld, Index n, S* x) {
  for (Index i = n - 1; i >= 0; --i) {
    for (Index j = i + 1; j < n; ++j) x[i] -= r[i + j * ld] * x[j];
    x[i] /= r[i + i * ld];
  }
}

/// x <- argmin ||R x - b||^2 + lambda ||x||^2 for b given in x, without squaring the condition
/// number: the rows sqrt(lambda) I are rotated into a copy of R. `work` holds n (n + 1) numbers.
template <class S>
DEQ_HOST_DEVICE void solve_ridge(const S* r, Index ld, Index n, S lambda, S* x, S* work) {
  S* t = work;
  S* row = work + n * n;
  for (Index j = 0; j < n; ++j)
    for (Index i = 0; i < n; ++i) t[i + j * n] = i <= j ? r[i + j * ld] : S(0);
  for (Index k = 0; k < n && lambda > 0; ++k) {
    for (Index j = 0; j < n; ++j) row[j] = j == k ? std::sqrt(lambda) : S(0);
    S rhs = 0;
    for (Index i = k; i < n; ++i) {
      const Rotation<S> rotation = Rotation<S>::eliminating(t[i + i * n], row[i]);
      for (Index j = i; j < n; ++j) rotation.apply(t[i + j * n], row[j]);
      rotation.apply(x[i], rhs);
    }
  }
  solve_upper(t, n, n, x);
}

}  // namespace deq::detail
