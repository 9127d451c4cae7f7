// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backward/concept.hpp>

namespace deq {

/// The oracle: forms I - J^T from D VJPs and solves the dense system. For tests and small D: D
/// VJPs, D^2 numbers, D^3 / 3 operations a sample.
struct Exact {
  static constexpr bool needs_inverse = false;

  template <class B>
  struct Workspace {
    AdjointReport report;
    Array<B> unit, column, matrix;
  };

  template <class B, Linearization<B> Jacobian, class Inverse>
  void adjoint(Samples everybody, Jacobian& jacobian, const Inverse*,
               BatchView<const typename B::Scalar> h, BatchView<typename B::Scalar> w,
               Workspace<B>& ws) const {
    using S = typename B::Scalar;
    static_assert(DenseBackend<B>, "deq: Exact needs a backend that solves dense systems");
    const Index dim = h.dim, count = h.count;
    const BatchView<S> unit = ws.unit.batch(dim, count), column = ws.column.batch(dim, count);
    ws.matrix.resize(dim * dim * count);
    B::fill(unit.data, unit.size(), 0);
    for (Index i = 0; i < dim; ++i) {
      // Column i of I - J^T for every sample.
      for (Index s = 0; s < count; ++s) B::fill(unit.col(s) + i, 1, S(1));
      jacobian.vjp(everybody, unit, column);
      B::axpby(everybody, S(1), BatchView<const S>(unit), S(-1), column);
      for (Index s = 0; s < count; ++s) {
        B::copy_bytes(ws.matrix.data() + (s * dim + i) * dim, column.col(s),
                      static_cast<std::size_t>(dim) * sizeof(S));
        B::fill(unit.col(s) + i, 1, S(0));
      }
    }
    B::copy(everybody, h, w);
    for (Index s = 0; s < count; ++s)
      B::solve_dense(dim, ws.matrix.data() + s * dim * dim, w.col(s));
    detail::start_report<B>(ws.report, count, static_cast<int>(dim));
  }
};

}  // namespace deq
