// SPDX-License-Identifier: MIT
#pragma once

#include <deq/core/error.hpp>
#include <deq/inverse/concept.hpp>

namespace deq {

/// The inverse that Anderson's method implies (type II: Fang and Saad, "Two classes of multisecant
/// methods for nonlinear acceleration", 2009). With the differences dZ, dG of the last n iterates
/// and residuals, dG = Q R, and Y = dZ + beta dG,
///
///     H = -beta I + Y M Q^T
///     M = argmin_M ||R M - I||_F^2 + lambda ||M||_F^2   (R^-1 for lambda = 0)
///
/// so that z - H g is Anderson's step, and H dG = dZ for lambda = 0.
///
///     | Y, Q | D x m a sample               |              |
///     | M    | m x m a sample, column-major |              |
///     | rank | 1 a sample                   | n, <= memory |
///
/// A product costs two passes over m D numbers. Memory: 2 m D numbers a sample.
template <Backend B>
class Multisecant {
  using S = typename B::Scalar;

 public:
  void prepare(Index dim, Index memory, Index count, S beta) {
    dim_ = dim;
    memory_ = memory;
    beta_ = beta;
    y_.basis(dim, memory, count);
    q_.basis(dim, memory, count);
    m_.resize(count * memory * memory);
    rank_.resize(count);
  }

  void reset(Samples a) {
    Index* rank = rank_.data();
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) { rank[s] = 0; });
  }

  Index dim() const { return dim_; }
  Index memory() const { return memory_; }
  /// Secants present for one sample; crosses to the host.
  Index rank(Index sample) const {
    Index n;
    B::download_bytes(&n, rank_.data() + sample, sizeof n);
    return n;
  }

  /// y = H x = -beta x + Y (M (Q^T x)).
  void apply(Samples a, BatchView<const S> x, BatchView<S> y, Array<B>& scratch) const {
    product(a, q_basis(), y_basis(), false, x, y, scratch);
  }
  /// y = H^T x = -beta x + Q (M^T (Y^T x)).
  void apply_transpose(Samples a, BatchView<const S> x, BatchView<S> y, Array<B>& scratch) const {
    product(a, y_basis(), q_basis(), true, x, y, scratch);
  }

  BasisView<S> y_basis() const { return {y_.data(), dim_, memory_}; }
  BasisView<S> q_basis() const { return {q_.data(), dim_, memory_}; }
  S* m() const { return m_.data(); }
  Index* ranks() const { return rank_.data(); }

 public:  // for nvcc, which accepts no device lambda in a private function
  void product(Samples a, BasisView<const S> left, BasisView<const S> right, bool transposed,
               BatchView<const S> x, BatchView<S> y, Array<B>& scratch) const {
    scratch.resize(2 * x.count * memory_);
    S* projected = scratch.data();
    S* coefficients = projected + x.count * memory_;
    const Index* rank = rank_.data();
    const S* m = m_.data();
    const Index memory = memory_;
    B::project(a, left, rank, x, projected);
    B::for_each(a, [=] DEQ_HOST_DEVICE(Index s) {
      const S* ms = m + s * memory * memory;
      for (Index i = 0; i < rank[s]; ++i) {
        S sum = 0;
        for (Index j = 0; j < rank[s]; ++j)
          sum += ms[transposed ? j + i * memory : i + j * memory] * projected[s * memory + j];
        coefficients[s * memory + i] = sum;
      }
    });
    B::combine(a, right, rank, coefficients, -beta_, x, y);
  }

 private:
  Index dim_ = 0, memory_ = 0;
  S beta_ = 1;
  Array<B> y_, q_, m_;
  Array<B, Index> rank_;
};

}  // namespace deq
