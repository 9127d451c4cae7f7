// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>

#include <deq/backend/cpu/basis.hpp>
#include <deq/backend/cpu/cpu.hpp>
#include <deq/backend/geometry.hpp>

namespace deq {

namespace detail {

template <class S>
using RowMajor = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
/// A row-major matrix inside other memory, rows `stride` apart.
template <class S>
using MatrixMap = Eigen::Map<
    std::conditional_t<std::is_const_v<S>, const RowMajor<std::remove_const_t<S>>, RowMajor<S>>,
    Eigen::Unaligned, Eigen::OuterStride<>>;

template <class S>
MatrixMap<S> matrix(S* data, Index rows, Index cols, Index stride) {
  return {data, rows, cols, Eigen::OuterStride<>(stride)};
}

/// c (+)= a B for a row a.
template <class A, class B, class C>
void multiply_row(const A& a, const B& b, C& c, bool accumulate) {
  const Index n = b.cols(), k = b.rows(), stride = b.outerStride();
  if (!accumulate) c.setZero();
  if constexpr (B::IsRowMajor)
    in_groups<4>(k, [&](auto N, Index l) {
      add_combination<N>(b.data() + l * stride, stride, a.data() + l, c.data(), n);
    });
  else
    in_groups<4>(n, [&](auto N, Index j) {
      add_dots<N>(b.data() + j * stride, stride, a.data(), k, c.data() + j);
    });
}

/// C (+)= A B on the calling thread. The bits depend on the numbers and the extents alone. Eigen's
/// paths for vectors and for very small products look at the alignment of the memory, so these are
/// plain loops here.
template <class A, class B, class C>
void multiply(const A& a, const B& b, C c, bool accumulate) {
  using S = typename A::Scalar;
  const Index m = a.rows(), n = b.cols(), k = a.cols();
  if (A::IsRowMajor && m == 1) {
    multiply_row(a, b, c, accumulate);
  } else if (m == 1 || n == 1 || m + n + k < 24) {
    for (Index i = 0; i < m; ++i)
      for (Index j = 0; j < n; ++j) {
        const S sum = lane_sum<S>(k, [&](Index l) { return a.coeff(i, l) * b.coeff(l, j); });
        c.coeffRef(i, j) = accumulate ? c.coeff(i, j) + sum : sum;
      }
  } else if (accumulate) {
    c.noalias() += a * b;
  } else {
    c.noalias() = a * b;
  }
}

}  // namespace detail

/// C (+)= op(A) op(B), in pieces of fixed size that the team shares.
template <class S>
void gemm(Cpu<S>, const GemmGeometry& g, const S* a, const S* b, S* c, bool accumulate) {
  constexpr Index rows = 64, columns = 128;
  const Index down = (g.m + rows - 1) / rows, across = (g.n + columns - 1) / columns;
  const auto piece = [&](Index index) {
    const Index i = index / across * rows, m = std::min(rows, g.m - i);
    const Index j = index % across * columns, n = std::min(columns, g.n - j);
    const auto out = detail::matrix(c + i * g.n + j, m, n, g.n);
    const auto times_b = [&](const auto& left) {
      if (g.transpose_b)
        detail::multiply(left, detail::matrix(b + j * g.k, n, g.k, g.k).transpose(), out,
                         accumulate);
      else
        detail::multiply(left, detail::matrix(b + j, g.k, n, g.n), out, accumulate);
    };
    if (g.transpose_a)
      times_b(detail::matrix(a + i, g.k, m, g.m).transpose());
    else
      times_b(detail::matrix(a + i * g.k, m, g.k, g.k));
  };
  parallel_for(down * across, piece, g.m * g.n * g.k < 65536);
}

}  // namespace deq
