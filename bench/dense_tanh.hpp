// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <type_traits>
#include <vector>

#include <Eigen/Core>

#include <deq/backend/cpu/gemm.hpp>
#include <deq/core/map.hpp>
#include <deq/core/parallel.hpp>
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

  DenseTanh(Index dim, Index batch, double radius = 0.9) : dim_(dim) {
    deq::Random random(1, deq::Purpose::user);
    const double scale = radius / std::sqrt(static_cast<double>(dim));
    w_.resize(static_cast<std::size_t>(dim * dim));
    x_.resize(static_cast<std::size_t>(dim * batch));
    for (S& w : w_) w = static_cast<S>(scale * random.normal());
    for (S& x : x_) x = static_cast<S>(random.normal());
  }

  Index dim() const { return dim_; }
  /// W row by row, and x sample by sample, for a peer to compute the same.
  const std::vector<S>& weights() const { return w_; }
  const std::vector<S>& inputs() const { return x_; }

  void evaluate(Samples a, BatchView<const S> z, BatchView<S> out) {
    deq::gemm(Backend{}, {.m = z.count, .n = dim_, .k = dim_, .transpose_b = true}, z.data,
              w_.data(), out.data, false);
    for_each_sample(
        a, [&](Index j) { column(out, j) = (column(out, j) + column(inputs_of(), a[j])).tanh(); });
  }

  /// J^T w = W^T ((1 - z^2) w) at a fixed point, where f(z) = z.
  struct Jacobian {
    const DenseTanh& map;
    BatchView<const S> z;

    void vjp(Samples a, BatchView<const S> w, BatchView<S> out) const {
      deq::Array<Backend> scaled;
      const BatchView<S> product = scaled.batch(w.dim, w.count);
      map.for_each_sample(
          a, [&](Index j) { column(product, j) = (1 - column(z, a[j]).square()) * column(w, j); });
      deq::gemm(Backend{}, {.m = w.count, .n = w.dim, .k = w.dim}, product.data, map.w_.data(),
                out.data, false);
    }
  };
  Jacobian linearize(BatchView<const S> z) const { return {*this, z}; }

 private:
  template <class T>
  static auto column(BatchView<T> batch, Index j) {
    using Column = Eigen::Array<std::remove_const_t<T>, Eigen::Dynamic, 1>;
    return Eigen::Map<std::conditional_t<std::is_const_v<T>, const Column, Column>>(
        batch.data + j * batch.dim, batch.dim);
  }
  BatchView<const S> inputs_of() const {
    return {x_.data(), dim_, static_cast<Index>(x_.size()) / dim_};
  }
  template <class Body>
  void for_each_sample(Samples a, Body body) const {
    deq::parallel_for(a.count, body, a.count * dim_ < 8192);
  }

  Index dim_;
  std::vector<S> w_, x_;
};

}  // namespace bench
