// SPDX-License-Identifier: MIT
// The two loops that a limited-memory method spends its time in: many vectors times one, and one
// plus a combination of many. Four vectors share each load of the fifth, which stays in the first
// level cache (a panel) or in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <deq/backend/cpu/lanes.hpp>
#include <deq/backend/cpu/simd.hpp>
#include <deq/core/bfloat16.hpp>

namespace deq::detail {

/// Numbers of one vector that are worked on while every vector of the basis passes by.
inline constexpr Index basis_panel = 2048;

template <class S, Index n>
struct VectorOf {
  typedef S type __attribute__((vector_size(static_cast<std::size_t>(n) * sizeof(S))));
};
/// A vector of S from numbers that are stored as they are, or as bfloat16.
template <class S, class T>
DEQ_INLINE inline Simd<S> load_as(const T* from) {
  if constexpr (std::is_same_v<S, T>) {
    return load(from);
  } else {
    static_assert(std::is_same_v<T, Bfloat16>);
    constexpr Index n = simd_width<S>;
    typename VectorOf<std::uint16_t, n>::type stored;
    std::memcpy(&stored, from, sizeof stored);
    const auto bits = __builtin_convertvector(stored, typename VectorOf<std::uint32_t, n>::type)
                      << 16;
    typename VectorOf<float, n>::type floats;
    std::memcpy(&floats, &bits, sizeof floats);
    if constexpr (std::is_same_v<S, float>)
      return floats;
    else
      return __builtin_convertvector(floats, Simd<S>);
  }
}

/// out_v += h_v . x for N vectors at h, h + stride, ... A product has the same bits whatever N is.
template <int N, class T, class S>
inline void add_dots(const T* h, Index stride, const S* x, Index n, S* out) {
  constexpr Index w = simd_width<S>;
  Simd<S> low[N] = {}, high[N] = {};
  Index i = 0;
  for (; i + 2 * w <= n; i += 2 * w) {
    const Simd<S> x0 = load(x + i), x1 = load(x + i + w);
    unroll<N>([&](auto v) DEQ_INLINE {
      low[v] += load_as<S>(h + v * stride + i) * x0;
      high[v] += load_as<S>(h + v * stride + i + w) * x1;
    });
  }
  if (i + w <= n) {
    const Simd<S> x0 = load(x + i);
    unroll<N>([&](auto v) DEQ_INLINE { low[v] += load_as<S>(h + v * stride + i) * x0; });
    i += w;
  }
  unroll<N>([&](auto v) DEQ_INLINE { low[v] += high[v]; });
  add_sums<S>(low, out);
  for (; i < n; ++i)
    unroll<N>([&](auto v) DEQ_INLINE {
      out[v] = multiply_add(static_cast<S>(h[v * stride + i]), x[i], out[v]);
    });
}

/// y += sum_v c_v h_v for N vectors, in the order of v.
template <int N, class T, class S>
inline void add_combination(const T* h, Index stride, const S* c, S* y, Index n) {
  constexpr Index w = simd_width<S>;
  Index i = 0;
  for (; i + 2 * w <= n; i += 2 * w) {
    Simd<S> y0 = load(y + i), y1 = load(y + i + w);
    unroll<N>([&](auto v) DEQ_INLINE {
      y0 += c[v] * load_as<S>(h + v * stride + i);
      y1 += c[v] * load_as<S>(h + v * stride + i + w);
    });
    store(y + i, y0);
    store(y + i + w, y1);
  }
  if (i + w <= n) {
    Simd<S> y0 = load(y + i);
    unroll<N>([&](auto v) DEQ_INLINE { y0 += c[v] * load_as<S>(h + v * stride + i); });
    store(y + i, y0);
    i += w;
  }
  for (; i < n; ++i)
    unroll<N>([&](auto v) DEQ_INLINE { y[i] += c[v] * static_cast<S>(h[v * stride + i]); });
}

/// body(integral_constant N, first) over groups of at most `most` of `count` vectors.
template <int most, class Body>
DEQ_INLINE inline void in_groups(Index count, Body&& body) {
  Index v = 0;
  for (; v + most <= count; v += most) body(std::integral_constant<int, most>{}, v);
  if constexpr (most > 1)
    unroll<most - 1>([&](auto i) DEQ_INLINE {
      if (count - v == i + 1) body(std::integral_constant<int, i + 1>{}, v);
    });
}

/// out_v += h_v . x for the first `rank` vectors of sample s, the numbers [first, first + n) of
/// each.
template <class T, class S>
inline void add_dots(BasisView<const T> h, Index s, Index rank, Index first, Index n, const S* x,
                     S* out) {
  in_groups<4>(rank,
               [&](auto N, Index v) { add_dots<N>(h.vec(s, v) + first, h.dim, x, n, out + v); });
}
/// y += sum_v c_v h_v, likewise.
template <class T, class S>
inline void add_combination(BasisView<const T> h, Index s, Index rank, Index first, Index n,
                            const S* c, S* y) {
  in_groups<4>(
      rank, [&](auto N, Index v) { add_combination<N>(h.vec(s, v) + first, h.dim, c + v, y, n); });
}

/// body(first, n) over the panels of [start, start + count).
template <class Body>
inline void in_panels(Index start, Index count, Body&& body) {
  for (Index first = 0; first < count; first += basis_panel)
    body(start + first, std::min(basis_panel, count - first));
}

}  // namespace deq::detail
