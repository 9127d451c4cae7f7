// SPDX-License-Identifier: MIT
// Sums in a fixed number of lanes: written so that the compiler vectorises them, and so that the
// result depends on the numbers alone, never on the alignment of the memory they lie in.
#pragma once

#include <deq/core/types.hpp>

namespace deq::detail {

template <class S>
inline constexpr Index lanes = 64 / static_cast<Index>(sizeof(S)) * 2;

template <class S>
S sum_lanes(const S (&lane)[lanes<S>]) {
  S folded[lanes<S>];
  for (Index l = 0; l < lanes<S>; ++l) folded[l] = lane[l];
  for (Index width = lanes<S> / 2; width > 0; width /= 2)
    for (Index l = 0; l < width; ++l) folded[l] += folded[l + width];
  return folded[0];
}

/// sum_i term(i), i < n.
template <class S, class Term>
inline S lane_sum(Index n, Term&& term) {
  S lane[lanes<S>] = {};
  const Index whole = n - n % lanes<S>;
  for (Index i = 0; i < whole; i += lanes<S>)
    for (Index l = 0; l < lanes<S>; ++l) lane[l] += term(i + l);
  for (Index l = 0; l < n - whole; ++l) lane[l] += term(whole + l);
  return sum_lanes<S>(lane);
}

template <class S>
inline S dot(const S* x, const S* y, Index n) {
  return lane_sum<S>(n, [=](Index i) { return x[i] * y[i]; });
}

/// g = f - z, n numbers; adds ||g||^2 and ||f||^2.
template <class S>
inline void subtract(const S* f, const S* z, S* g, Index n, S& g_squared, S& f_squared) {
  for (Index i = 0; i < n; ++i) g[i] = f[i] - z[i];
  g_squared += dot(g, g, n);
  f_squared += dot(f, f, n);
}

}  // namespace deq::detail
