// SPDX-License-Identifier: MIT
// Winograd's matrices.
#pragma once

#include <numbers>
#include <type_traits>

#include <deq/backend/cpu/simd.hpp>

namespace deq::detail {

/// Winograd's minimal filtering F(M x M, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional
/// Neural Networks", 2015): a tile of M x M output pixels from its (M + 2) x (M + 2) input pixels d
/// and the 3 x 3 weights g by (M + 2)^2 products in place of 9 M^2,
///
///     y = A^T [ (G g G^T) * (B^T d B) ] A.
///
/// The gradient of the weights is the transpose of that map: from the cotangents D of the output
/// tiles
///
///     dl/dg = G^T [sum (B^T d B) * (A D A^T)] G.
///
/// Each function is one of the matrices, applied to a column of vectors. The tests bound the error:
/// it grows with M, in single precision to about 1e-6 of the output's size for M = 4.
template <int M>
struct Winograd;

template <>
struct Winograd<2> {
  static constexpr int tile = 4;

  template <class V>
  DEQ_INLINE static void input(const V (&d)[4], V (&u)[4]) {  // B^T
    u[0] = d[0] - d[2];
    u[1] = d[1] + d[2];
    u[2] = d[2] - d[1];
    u[3] = d[1] - d[3];
  }
  template <class V>
  DEQ_INLINE static void weights(const V (&g)[3], V (&u)[4]) {  // G
    const V even = (g[0] + g[2]) / 2, odd = g[1] / 2;
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = g[2];
  }
  template <class V>
  DEQ_INLINE static void output(const V (&m)[4], V (&y)[2]) {  // A^T
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  template <class V>
  DEQ_INLINE static void output_transposed(const V (&y)[2], V (&m)[4]) {  // A
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = -y[1];
  }
  template <class V>
  DEQ_INLINE static void weights_transposed(const V (&u)[4], V (&g)[3]) {  // G^T
    const V even = (u[1] + u[2]) / 2;
    g[0] = u[0] + even;
    g[1] = (u[1] - u[2]) / 2;
    g[2] = even + u[3];
  }
};

/// Interpolates at 0, +-a, +-b and infinity with a^2 = 1/2 and b^2 = 2, which halves the error of
/// the usual 0, +-1, +-2: no power of a point is far from 1.
template <>
struct Winograd<4> {
  static constexpr int tile = 6;

  template <class V>
  DEQ_INLINE static void input(const V (&d)[6], V (&u)[6]) {
    const V even = d[4] - 2 * d[2], odd = a<V> * (d[3] - 2 * d[1]);
    const V far_even = d[4] - d[2] / 2, far_odd = b<V> * (d[3] - d[1] / 2);
    u[0] = d[0] - five_halves<V> * d[2] + d[4];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = far_even + far_odd;
    u[4] = far_even - far_odd;
    u[5] = d[1] - five_halves<V> * d[3] + d[5];
  }
  template <class V>
  DEQ_INLINE static void weights(const V (&g)[3], V (&u)[6]) {
    const V even = (2 * g[0] + g[2]) / -3, odd = a<V> * g[1] * 2 / -3;
    const V far_even = (g[0] + 2 * g[2]) / 6, far_odd = b<V> * g[1] / 6;
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = far_even + far_odd;
    u[4] = far_even - far_odd;
    u[5] = g[2];
  }
  template <class V>
  DEQ_INLINE static void output(const V (&m)[6], V (&y)[4]) {
    const V sum = m[1] + m[2], difference = a<V> * (m[1] - m[2]);
    const V far_sum = m[3] + m[4], far_difference = b<V> * (m[3] - m[4]);
    y[0] = m[0] + sum + far_sum;
    y[1] = difference + far_difference;
    y[2] = sum / 2 + 2 * far_sum;
    y[3] = difference / 2 + 2 * far_difference + m[5];
  }
  template <class V>
  DEQ_INLINE static void output_transposed(const V (&y)[4], V (&m)[6]) {
    const V even = y[0] + y[2] / 2, odd = a<V> * (y[1] + y[3] / 2);
    const V far_even = y[0] + 2 * y[2], far_odd = b<V> * (y[1] + 2 * y[3]);
    m[0] = y[0];
    m[1] = even + odd;
    m[2] = even - odd;
    m[3] = far_even + far_odd;
    m[4] = far_even - far_odd;
    m[5] = y[3];
  }
  template <class V>
  DEQ_INLINE static void weights_transposed(const V (&u)[6], V (&g)[3]) {
    const V sum = (u[1] + u[2]) / -3, difference = a<V> * (u[1] - u[2]) / -3;
    const V far_sum = (u[3] + u[4]) / 6, far_difference = b<V> * (u[3] - u[4]) / 6;
    g[0] = u[0] + 2 * sum + far_sum;
    g[1] = 2 * difference + far_difference;
    g[2] = sum + 2 * far_sum + u[5];
  }

 private:
  template <class V>
  using Scalar = std::remove_cvref_t<decltype(std::declval<V&>()[0])>;
  template <class V>
  static constexpr Scalar<V> a = std::numbers::sqrt2_v<Scalar<V>> / 2;
  template <class V>
  static constexpr Scalar<V> b = std::numbers::sqrt2_v<Scalar<V>>;
  template <class V>
  static constexpr Scalar<V> five_halves = 2.5;
};

/// put(i, j, (T d T^T)_ij) for all i and j, T being given as a function on columns of N numbers
/// with M results, and d as d(i, j). Loops, not code for every row: what one of them reads is in
/// registers until its results are in memory, and no longer.
template <int M, int N, class D, class Transform, class Put>
DEQ_INLINE inline void on_both_sides(D d, Transform transform, Put put) {
  using V = decltype(d(0, 0));
  V half[M][N];
  for (int i = 0; i < N; ++i) {
    V row[N], result[M];
    unroll<N>([&](auto j) DEQ_INLINE { row[j] = d(i, j); });
    transform(row, result);
    unroll<M>([&](auto j) DEQ_INLINE { half[j][i] = result[j]; });
  }
  for (int j = 0; j < M; ++j) {
    V result[M];
    transform(half[j], result);
    unroll<M>([&](auto i) DEQ_INLINE { put(i, j, result[i]); });
  }
}

}  // namespace deq::detail
