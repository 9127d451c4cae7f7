// SPDX-License-Identifier: MIT
#pragma once

#include <Eigen/Core>

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

/// C (+)= A B on the calling thread. The bits depend on the numbers and the extents alone. Eigen's
/// paths for vectors and for very small products look at the alignment of the memory, so these
/// are plain loops here.
template <class A, class B, class C>
void multiply(const A& a, const B& b, C c, bool accumulate) {
  using S = typename A::Scalar;
  const Index m = a.rows(), n = b.cols(), k = a.cols();
  if (m == 1 || n == 1 || m + n + k < 24) {
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

/// C (+)= op(A) op(B). Rows of C are shared by the team in blocks of fixed size.
template <class S>
void gemm(Cpu<S>, const GemmGeometry& g, const S* a, const S* b, S* c, bool accumulate) {
  constexpr Index block = 64;
  const auto rows_of_c = [&](Index piece) {
    const Index first = piece * block, m = std::min(block, g.m - first);
    const auto out = detail::matrix(c + first * g.n, m, g.n, g.n);
    const auto times_b = [&](const auto& left) {
      if (g.transpose_b)
        detail::multiply(left, detail::matrix(b, g.n, g.k, g.k).transpose(), out, accumulate);
      else
        detail::multiply(left, detail::matrix(b, g.k, g.n, g.n), out, accumulate);
    };
    if (g.transpose_a)
      times_b(detail::matrix(a + first, g.k, m, g.m).transpose());
    else
      times_b(detail::matrix(a + first * g.k, m, g.k, g.k));
  };
  parallel_for((g.m + block - 1) / block, rows_of_c, g.m * g.n * g.k < 65536);
}

}  // namespace deq
