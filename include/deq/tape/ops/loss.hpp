// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>
#include <ranges>
#include <utility>

#include <deq/backend/array.hpp>
#include <deq/core/host_pool.hpp>
#include <deq/tape/ops/reduce.hpp>

namespace deq {

namespace detail {
/// A tensor as rows of its last dimension.
struct LastDimension {
  Index rows, width;
  LastDimension(const char* name, const Shape& x) {
    require<ShapeError>(x.rank() >= 1 && x[-1] >= 1, name, ": needs a last dimension, got shape ",
                        x);
    rows = x.product(0, x.rank() - 1);
    width = x[-1];
  }
};
}  // namespace detail

/// y = x - log sum exp(x) over the last dimension.
template <class B>
struct LogSoftmax {
  static constexpr bool saves_inputs = false, saves_output = true;

  Tensor<B> forward(const Tensor<B>& x) const {
    const detail::LastDimension d("log_softmax", x.shape());
    Tensor<B> y(x.shape());
    log_softmax_forward(B{}, d.rows, d.width, x.data(), y.data());
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    if (!r.grad[0]) return;
    const detail::LastDimension d("log_softmax", r.cotangent.shape());
    const auto [out, accumulate] = r.grad[0].target();
    log_softmax_vjp(B{}, d.rows, d.width, r.output.data(), r.cotangent.data(), out, accumulate);
  }
};

/// y = exp(x) / sum exp(x) over the last dimension.
template <class B>
struct Softmax {
  static constexpr bool saves_inputs = false, saves_output = true;

  Tensor<B> forward(const Tensor<B>& x) const {
    const detail::LastDimension d("softmax", x.shape());
    Tensor<B> y(x.shape());
    log_softmax_forward(B{}, d.rows, d.width, x.data(), y.data());
    elementwise(B{}, y.size(), detail::Exp{}, y.data(), y.data());
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    if (!r.grad[0]) return;
    const detail::LastDimension d("softmax", r.cotangent.shape());
    const auto [out, accumulate] = r.grad[0].target();
    softmax_vjp(B{}, d.rows, d.width, r.output.data(), r.cotangent.data(), out, accumulate);
  }
};

/// Mean over the batch of -log softmax(x)[label].
template <class B>
struct SoftmaxCrossEntropy {
  static constexpr bool saves_inputs = false, saves_output = false;
  Array<B, Index> labels{};
  Tensor<B> log_probability{};

  Tensor<B> forward(const Tensor<B>& logits) {
    log_probability = LogSoftmax<B>{}.forward(logits);
    Tensor<B> loss(Shape{});
    cross_entropy_forward(B{}, logits.extent(0), logits.extent(1), log_probability.data(),
                          labels.data(), loss.data());
    return loss;
  }
  void vjp(const Reverse<B>& r) const {
    if (!r.grad[0]) return;
    const auto [out, accumulate] = r.grad[0].target();
    cross_entropy_vjp(B{}, log_probability.extent(0), log_probability.extent(1),
                      log_probability.data(), labels.data(), r.cotangent.data(), out, accumulate);
  }
};

/// exp(x) / sum exp(x) over the last dimension; does not overflow.
template <TensorLike X>
auto softmax(const X& x) {
  return record(Softmax<typename X::Backend>{}, x);
}
/// log softmax(x), over the last dimension.
template <TensorLike X>
auto log_softmax(const X& x) {
  return record(LogSoftmax<typename X::Backend>{}, x);
}

/// The mean over the batch of -log softmax(logits)[label], in nats, of rank 0; logits (N, K),
/// labels any contiguous list of N integers in [0, K). Throws ShapeError, or InvalidArgument for a
/// label outside.
template <TensorLike X, std::ranges::contiguous_range Labels>
  requires std::integral<std::ranges::range_value_t<Labels>>
auto softmax_cross_entropy(const X& logits, const Labels& labels) {
  using B = typename X::Backend;
  const Shape& shape = logits.shape();
  const auto n = static_cast<Index>(std::ranges::size(labels));
  require<ShapeError>(shape.rank() == 2 && shape[0] == n && n > 0,
                      "softmax_cross_entropy: needs logits (N, K) and N labels, N > 0, got ", shape,
                      " and ", n, " labels");
  PoolVector<Index> host;
  host.reserve(static_cast<std::size_t>(n));
  for (const auto label : labels) {
    require(std::cmp_greater_equal(label, 0) && std::cmp_less(label, shape[1]),
            "softmax_cross_entropy: label ", +label, " is outside [0, ", shape[1], ")");
    host.push_back(static_cast<Index>(label));
  }
  SoftmaxCrossEntropy<B> op;
  op.labels.resize(n);
  B::upload_bytes(op.labels.data(), host.data(), host.size() * sizeof(Index));
  return record(std::move(op), logits);
}

/// The mean of (a - b)^2 over all elements, of rank 0; a and b have the same shape.
template <TensorLike X, TensorLike Y>
auto mse_loss(const X& a, const Y& b) {
  require<ShapeError>(a.shape() == b.shape(), "mse_loss: shapes ", a.shape(), " and ", b.shape(),
                      " differ");
  return mean(square(a - b));
}

}  // namespace deq
