// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include <deq/backend/cpu/simd.hpp>

namespace deq::detail {

/// The numbers of a and b from `first` on, in turns, as many as a vector holds.
template <class S, int first, int... L>
DEQ_INLINE inline Simd<S> in_turns(const Simd<S>& a, const Simd<S>& b,
                                   std::integer_sequence<int, L...>) {
#ifdef __NVCC__  // which loses the pack below
  Simd<S> turns;
  ((turns[L] = (L % 2 ? b : a)[first + L / 2]), ...);
  return turns;
#else
  return __builtin_shufflevector(a, b, (first + L / 2 + L % 2 * simd_width<S>)...);
#endif
}
/// The first half of the vectors and the second half, number by number: done log2(n) times, n
/// vectors of n numbers are transposed.
template <class S>
DEQ_INLINE inline void interleave_halves(Simd<S> (&v)[simd_width<S>]) {
  constexpr int n = static_cast<int>(simd_width<S>);
  constexpr std::make_integer_sequence<int, n> lanes;
  Simd<S> mixed[n];
  unroll<n / 2>([&](auto i) DEQ_INLINE {
    mixed[2 * i] = in_turns<S, 0>(v[i], v[i + n / 2], lanes);
    mixed[2 * i + 1] = in_turns<S, n / 2>(v[i], v[i + n / 2], lanes);
  });
  unroll<n>([&](auto i) DEQ_INLINE { v[i] = mixed[i]; });
}

/// y_ji (+)= x_ij of a rows x columns matrix whose rows are `x_stride` apart, those of y
/// `y_stride`: (channels, pixels) to (pixels, channels) and back, in squares that fit in registers.
template <class S>
void transpose_plane(Index rows, Index columns, const S* x, Index x_stride, S* y, Index y_stride,
                     bool accumulate = false) {
  constexpr Index n = simd_width<S>;
  for (Index j = 0; j < columns; j += n)
    for (Index i = 0; i < rows; i += n) {
      const Index height = std::min(n, rows - i), width = columns - j;
      Simd<S> square[n];
      std::fill_n(square, n, Simd<S>{});
      for (Index k = 0; k < height; ++k) square[k] = load(x + (i + k) * x_stride + j, width);
      for (Index step = 1; step < n; step *= 2) interleave_halves<S>(square);
      for (Index k = 0; k < std::min(n, width); ++k) {
        S* to = y + (j + k) * y_stride + i;
        store(to, accumulate ? load(to, height) + square[k] : square[k], height);
      }
    }
}

}  // namespace deq::detail
