// SPDX-License-Identifier: MIT
// Normalisations, with PyTorch's semantics.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>

#include <deq/tape/ops/elementwise.hpp>
#include <deq/tape/ops/shape.hpp>

namespace deq {

namespace detail {

/// (N, C, ...) as samples, channels, pixels, with statistics of `groups` groups of channels a
/// sample.
inline NormGeometry norm_geometry(const char* name, const Shape& x, Index groups) {
  require<ShapeError>(x.rank() >= 2, name, ": needs x (N, C, ...), got ", x);
  require<ShapeError>(groups >= 1 && x[1] % groups == 0, name, ": the ", x[1], " channels of ", x,
                      " are not divided by ", groups, " groups");
  return {x[0], x[1], x.product(2, x.rank()), x[1] / groups};
}
inline void require_channels(const char* name, const Shape& x, const Shape& parameter) {
  require<ShapeError>(parameter == Shape{x[1]}, name, ": needs one number for each of the ", x[1],
                      " channels of ", x, ", got shape ", parameter);
}

/// What both normalisations share: y = u w + b, u = (x - mean) * inverse, and the cotangents of w
/// and b.
template <class B>
struct Normalization {
  static constexpr bool saves_inputs = true, saves_output = false;
  using S = typename B::Scalar;

  NormGeometry geometry{};
  Tensor<B> mean{}, inverse{};

  template <class... Affine>
  Tensor<B> normalized([[maybe_unused]] const char* name, const Tensor<B>& x,
                       const Affine&... affine) const {
    (require_channels(name, x.shape(), affine.shape()), ...);
    const S* parameter[2] = {nullptr, nullptr};
    [[maybe_unused]] std::size_t i = 0;
    ((parameter[i++] = affine.data()), ...);
    Tensor<B> y(x.shape());
    normalize(B{}, geometry, x.data(), mean.data(), inverse.data(), parameter[0], parameter[1],
              y.data());
    return y;
  }
  void affine_vjp(const Reverse<B>& r) const {
    if (r.grad.size() == 1) return;
    if (r.grad[1]) {
      const auto [out, accumulate] = r.grad[1].target();
      normalize_vjp_weight(B{}, geometry, r.input[0].data(), mean.data(), inverse.data(),
                           r.cotangent.data(), out, accumulate);
    }
    if (r.grad[2]) {
      const auto [out, accumulate] = r.grad[2].target();
      const Shape full{geometry.samples, geometry.channels, geometry.pixels};
      broadcast_sum(B{}, LoopNest<2>(full, {Shape{1, geometry.channels, 1}, full}), std::identity{},
                    out, accumulate, r.cotangent.data());
    }
  }
  static const S* weight(const Reverse<B>& r) {
    return r.input.size() > 1 ? r.input[1].data() : nullptr;
  }
};

}  // namespace detail

/// Group normalisation: statistics of each group of channels of each sample.
template <class B>
struct GroupNorm : detail::Normalization<B> {
  using S = typename B::Scalar;
  Index groups;
  S eps;

  GroupNorm(Index number_of_groups, S epsilon) : groups(number_of_groups), eps(epsilon) {}

  template <class... Affine>
  Tensor<B> forward(const Tensor<B>& x, const Affine&... affine) {
    this->geometry = detail::norm_geometry("group_norm", x.shape(), groups);
    this->mean = Tensor<B>({x.extent(0), groups});
    this->inverse = Tensor<B>({x.extent(0), groups});
    group_statistics(B{}, this->geometry, eps, x.data(), this->mean.data(), this->inverse.data());
    return this->normalized("group_norm", x, affine...);
  }
  void vjp(const Reverse<B>& r) const {
    if (r.grad[0]) {
      const auto [out, accumulate] = r.grad[0].target();
      group_norm_vjp_input(B{}, this->geometry, r.input[0].data(), this->mean.data(),
                           this->inverse.data(), this->weight(r), r.cotangent.data(), out,
                           accumulate);
    }
    this->affine_vjp(r);
  }
};

/// y = (x - m) / sqrt(v + eps), m and v the mean and the biased variance of C / groups consecutive
/// channels and all pixels of one sample. x (N, C, ...). The bits of a sample do not depend on the
/// others.
template <TensorLike X>
auto group_norm(const X& x, Index groups, detail::ScalarOf<X> eps = detail::ScalarOf<X>(1e-5)) {
  return record(GroupNorm<typename X::Backend>(groups, eps), x);
}
/// The same times weight (C) plus bias (C).
template <TensorLike X, TensorLike W, TensorLike V>
auto group_norm(const X& x, Index groups, const W& weight, const V& bias,
                detail::ScalarOf<X> eps = detail::ScalarOf<X>(1e-5)) {
  return record(GroupNorm<typename X::Backend>(groups, eps), x, weight, bias);
}

/// Normalises the last dimension D: y = (x - m) / sqrt(v + eps) * weight + bias, weight and bias
/// (D). It is group_norm with D channels in one group.
template <TensorLike X, TensorLike W, TensorLike V>
auto layer_norm(const X& x, const W& weight, const V& bias,
                detail::ScalarOf<X> eps = detail::ScalarOf<X>(1e-5)) {
  const Shape& shape = x.shape();
  require<ShapeError>(shape.rank() >= 1, "layer_norm: needs a last dimension, got shape ", shape);
  require<ShapeError>(weight.shape() == Shape{shape[-1]} && bias.shape() == Shape{shape[-1]},
                      "layer_norm: weight and bias must have the shape of the last dimension of ",
                      shape, ", got ", weight.shape(), " and ", bias.shape());
  const X rows = reshape(x, {shape.product(0, shape.rank() - 1), shape[-1]});
  return reshape(group_norm(rows, 1, weight, bias, eps), shape);
}

namespace detail {
/// (1 - momentum) old + momentum unbias now
template <class S>
struct RunningMean {
  S momentum, unbias;
  DEQ_HOST_DEVICE S operator()(S old, S now) const {
    return (1 - momentum) * old + momentum * (unbias * now);
  }
};
}  // namespace detail

/// The running statistics of one batch normalisation; start at 0 and 1.
template <class B>
struct BatchNormState {
  Tensor<B> running_mean, running_var;  ///< (C)
  std::int64_t batches = 0;             ///< how many have been counted in

  explicit BatchNormState(Index channels)
      : running_mean({channels}, 0), running_var({channels}, 1) {}

  /// Counts in a batch with `n` values a channel, of this mean and biased variance: running <- (1 -
  /// momentum) running + momentum now, where the variance is that of the population, with divisor n
  /// - 1. If somebody else still holds the old statistics, they are replaced, not overwritten.
  void count_in(const Tensor<B>& mean, const Tensor<B>& variance, Index n,
                typename B::Scalar momentum) {
    using S = typename B::Scalar;
    const auto count = [&](Tensor<B>& running, const Tensor<B>& now, S unbias) {
      const bool in_place = running.unique();
      require(in_place || !B::recording(),
              "batch_norm: the running statistics are shared; a recorded step needs its own");
      Tensor<B> next = in_place ? running : Tensor<B>(running.shape());
      elementwise(B{}, next.size(), detail::RunningMean<S>{momentum, unbias}, next.data(),
                  running.data(), now.data());
      running = std::move(next);
    };
    count(running_mean, mean, 1);
    count(running_var, variance, static_cast<S>(n) / static_cast<S>(n - 1));
    B::when_done([this] { ++batches; });
  }
};

enum class BatchNormMode {
  train,     ///< normalise with the statistics of this batch, and count them into the running ones
  evaluate,  ///< normalise with the running statistics, which stay as they are
};

/// Batch normalisation with given statistics (C), those of this batch or constant ones.
template <class B>
struct BatchNorm : detail::Normalization<B> {
  using S = typename B::Scalar;
  bool constant_statistics;

  BatchNorm(const NormGeometry& g, Tensor<B> m, Tensor<B> i, bool constant)
      : detail::Normalization<B>{g, std::move(m), std::move(i)}, constant_statistics(constant) {}

  template <class... Affine>
  Tensor<B> forward(const Tensor<B>& x, const Affine&... affine) const {
    return this->normalized("batch_norm", x, affine...);
  }
  void vjp(const Reverse<B>& r) const {
    if (r.grad[0]) {
      const auto [out, accumulate] = r.grad[0].target();
      batch_norm_vjp_input(B{}, this->geometry, constant_statistics, r.input[0].data(),
                           this->mean.data(), this->inverse.data(), this->weight(r),
                           r.cotangent.data(), out, accumulate);
    }
    this->affine_vjp(r);
  }
};

namespace detail {

inline void require_batch(const char* name, const NormGeometry& g, const Shape& x) {
  require<ShapeError>(g.count() > 1, name, ": training needs more than one value a channel, got ",
                      x);
}

template <class S>
struct InverseDeviation {
  S eps;
  DEQ_HOST_DEVICE S operator()(S variance) const { return 1 / std::sqrt(variance + eps); }
};
/// 1 / sqrt(variance + eps).
template <class B>
Tensor<B> inverse_deviation(const Tensor<B>& variance, typename B::Scalar eps) {
  using S = typename B::Scalar;
  Tensor<B> inverse(variance.shape());
  elementwise(B{}, variance.size(), InverseDeviation<S>{eps}, inverse.data(), variance.data());
  return inverse;
}

/// The operation for this batch; in training counts the batch into the running statistics. All
/// shapes are checked first: a batch that throws is not counted in.
template <class B, class... Affine>
BatchNorm<B> prepare_batch_norm(const Tensor<B>& x, BatchNormState<B>& state, BatchNormMode mode,
                                typename B::Scalar momentum, typename B::Scalar eps,
                                const Affine&... affine) {
  NormGeometry g = norm_geometry("batch_norm", x.shape(), 1);
  g.channels_per_statistic = 1;
  g.shared = true;
  require_channels("batch_norm", x.shape(), state.running_mean.shape());
  require_channels("batch_norm", x.shape(), state.running_var.shape());
  (require_channels("batch_norm", x.shape(), affine.shape()), ...);
  Tensor<B> mean = state.running_mean, variance = state.running_var;
  if (mode == BatchNormMode::train) {
    require_batch("batch_norm", g, x.shape());
    mean = Tensor<B>({g.channels});
    variance = Tensor<B>({g.channels});
    batch_statistics(B{}, g, x.data(), mean.data(), variance.data());
    state.count_in(mean, variance, g.count(), momentum);
  }
  return {g, std::move(mean), inverse_deviation(variance, eps), mode == BatchNormMode::evaluate};
}

}  // namespace detail

/// y = (x - m) / sqrt(v + eps) for every channel of x (N, C, ...). Training: m and v are the mean
/// and the biased variance over the batch and all pixels, and running <- (1 - momentum) running +
/// momentum (m, or the unbiased variance). Evaluation: m and v are the running statistics.
template <TensorLike X>
auto batch_norm(const X& x, BatchNormState<typename X::Backend>& state, BatchNormMode mode,
                detail::ScalarOf<X> momentum = detail::ScalarOf<X>(0.1),
                detail::ScalarOf<X> eps = detail::ScalarOf<X>(1e-5)) {
  return record(detail::prepare_batch_norm(value(x), state, mode, momentum, eps), x);
}
/// The same times weight (C) plus bias (C).
template <TensorLike X, TensorLike W, TensorLike V>
auto batch_norm(const X& x, const W& weight, const V& bias,
                BatchNormState<typename X::Backend>& state, BatchNormMode mode,
                detail::ScalarOf<X> momentum = detail::ScalarOf<X>(0.1),
                detail::ScalarOf<X> eps = detail::ScalarOf<X>(1e-5)) {
  return record(detail::prepare_batch_norm(value(x), state, mode, momentum, eps, weight, bias), x,
                weight, bias);
}

/// Weight normalisation.
template <class B>
struct WeightNorm {
  static constexpr bool saves_inputs = true, saves_output = false;
  Tensor<B> norm{};

  Tensor<B> forward(const Tensor<B>& v, const Tensor<B>& g) {
    require<ShapeError>(v.shape().rank() >= 1 && g.shape().rank() >= 1 &&
                            g.extent(0) == v.extent(0) && g.size() == v.extent(0),
                        "weight_norm: needs v (O, ...) and g (O, 1, ...), got ", v.shape(), " and ",
                        g.shape());
    norm = Tensor<B>({v.extent(0)});
    Tensor<B> y(v.shape());
    weight_norm_forward(B{}, rows(v), width(v), v.data(), g.data(), y.data(), norm.data());
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    const Tensor<B>&v = r.input[0], &g = r.input[1];
    if (r.grad[0]) {
      const auto [out, accumulate] = r.grad[0].target();
      weight_norm_vjp_v(B{}, rows(v), width(v), v.data(), g.data(), norm.data(), r.cotangent.data(),
                        out, accumulate);
    }
    if (r.grad[1]) {
      const auto [out, accumulate] = r.grad[1].target();
      weight_norm_vjp_g(B{}, rows(v), width(v), v.data(), norm.data(), r.cotangent.data(), out,
                        accumulate);
    }
  }

 private:
  static Index rows(const Tensor<B>& v) { return v.extent(0); }
  static Index width(const Tensor<B>& v) { return v.shape().product(1, v.shape().rank()); }
};

/// w_o = g_o v_o / ||v_o|| for every output channel o; v (O, ...), g (O, 1, ...). No eps: a v_o of
/// zeros gives NaN.
template <TensorLike V, TensorLike G>
auto weight_norm(const V& v, const G& g) {
  return record(WeightNorm<typename V::Backend>{}, v, g);
}

}  // namespace deq
