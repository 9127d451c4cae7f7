// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <vector>

#include <Eigen/Core>

#include <deq/backend/cpu/cpu.hpp>
#include <deq/core/map.hpp>
#include <deq/core/random.hpp>

namespace bench {

using deq::BatchView;
using deq::Index;
using deq::Samples;

/// z = tanh(W z + x), W random with spectral radius about `radius`: the dense map of the
/// benchmarks, with a hand-written VJP. One evaluation is 2 D^2 FLOP a sample.
template <class S>
class DenseTanh {
 public:
  using Backend = deq::Cpu<S>;
  using Matrix = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic>;
  using ConstMap = Eigen::Map<const Matrix>;

  DenseTanh(Index dim, Index batch, double radius = 0.9) : w_(dim, dim), x_(dim, batch) {
    deq::Random random(1, deq::Purpose::user);
    const double scale = radius / std::sqrt(static_cast<double>(dim));
    for (Index i = 0; i < w_.size(); ++i) w_.data()[i] = static_cast<S>(scale * random.normal());
    for (Index i = 0; i < x_.size(); ++i) x_.data()[i] = static_cast<S>(random.normal());
  }

  Index dim() const { return w_.rows(); }
  /// W row by row, and x sample by sample, for a peer to compute the same.
  std::vector<S> weights_row_major() const {
    const Matrix transposed = w_.transpose();
    return {transposed.data(), transposed.data() + transposed.size()};
  }
  std::vector<S> inputs() const { return {x_.data(), x_.data() + x_.size()}; }

  void evaluate(Samples a, BatchView<const S> z, BatchView<S> out) {
    Eigen::Map<Matrix> y(out.data, out.dim, out.count);
    y.noalias() = w_ * ConstMap(z.data, z.dim, z.count);
    for (Index j = 0; j < a.count; ++j) y.col(j) = (y.col(j) + x_.col(a[j])).array().tanh();
  }

  /// J^T w = W^T ((1 - z^2) w) at a fixed point, where f(z) = z.
  struct Jacobian {
    const DenseTanh& map;
    Matrix slope;

    void vjp(Samples a, BatchView<const S> w, BatchView<S> out) const {
      Matrix scaled(w.dim, w.count);
      for (Index j = 0; j < a.count; ++j)
        scaled.col(j) = slope.col(a[j]).cwiseProduct(ConstMap(w.data, w.dim, w.count).col(j));
      Eigen::Map<Matrix>(out.data, out.dim, out.count).noalias() = map.w_.transpose() * scaled;
    }
  };
  Jacobian linearize(BatchView<const S> z) const {
    const ConstMap zm(z.data, z.dim, z.count);
    return {*this, (1 - zm.array().square()).matrix()};
  }

 private:
  Matrix w_, x_;
};

}  // namespace bench
