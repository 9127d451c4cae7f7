// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <span>

#include <Eigen/Core>

#include <deq/backend/cpu/gemm.hpp>
#include <deq/backend/cpu/packed_gemm.hpp>
#include <deq/core/map.hpp>
#include <deq/core/parallel.hpp>
#include <deq/core/random.hpp>

namespace bench {

using deq::BatchView;
using deq::Index;
using deq::Samples;

/// z = tanh(W z + x), W random with spectral radius about `radius`: the dense map of the
/// benchmarks. One evaluation is 2 D^2 FLOP a sample.
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
  std::span<const S> weights() const { return w_; }
  std::span<const S> inputs() const { return x_; }

  /// What a layer does for every solve, since its parameters are new: packs W. For a single sample,
  /// which reads W as often as it would be packed, it does not pay.
  void begin() {
    if (static_cast<Index>(x_.size()) == dim_) return;
    packed_.resize(deq::gemm_packed_size(Backend{}, dim_, dim_));
    deq::gemm_pack(Backend{}, dim_, dim_, true, w_.data(), packed_.data());
  }
  void evaluate(Samples a, BatchView<const S> z, BatchView<S> out) {
    if (packed_.size() > 0)
      deq::gemm_packed(Backend{}, z.count, dim_, dim_, z.data, packed_.data(), out.data, false);
    else
      deq::gemm(Backend{}, {.m = z.count, .n = dim_, .k = dim_, .transpose_b = true}, z.data,
                w_.data(), out.data, false);
    using Column = Eigen::Array<S, Eigen::Dynamic, 1>;
    deq::parallel_for(
        a.count,
        [&](Index j) {
          Eigen::Map<Column> y(out.data + j * dim_, dim_);
          y = (y + Eigen::Map<const Column>(x_.data() + a[j] * dim_, dim_)).tanh();
        },
        a.count * dim_ < 8192);
  }

 private:
  Index dim_;
  deq::PoolVector<S> w_, x_;  // at the beginning of a cache line, as tensors are
  deq::Array<Backend> packed_;
};

}  // namespace bench
