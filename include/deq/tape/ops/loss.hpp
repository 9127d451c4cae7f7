// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <concepts>
#include <limits>
#include <memory>
#include <ranges>
#include <span>
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

/// The classes of a batch of samples, on the host and in the memory of backend B. A handle: a copy
/// names the same labels, and `assign` gives all of them new ones.
template <Backend B>
class Labels {
 public:
  Labels() = default;
  /// Any contiguous list of integers >= 0.
  template <std::ranges::contiguous_range List>
    requires std::integral<std::ranges::range_value_t<List>>
  explicit Labels(const List& list) { assign(list); }
  /// Labels of another batch; in the same memory if there are as many. Throws InvalidArgument.
  template <std::ranges::contiguous_range List>
    requires std::integral<std::ranges::range_value_t<List>>
  void assign(const List& list) {
    if (!shared_) shared_ = std::allocate_shared<Shared>(PoolAllocator<Shared>());
    PoolVector<Index>& host = shared_->host;
    host.clear();
    host.reserve(std::ranges::size(list));
    shared_->largest = -1;
    for (const auto label : list) {
      require(std::cmp_greater_equal(label, 0) &&
                  std::cmp_less_equal(label, std::numeric_limits<int>::max()),
              "Labels: ", +label, " is no class");
      host.push_back(static_cast<Index>(label));
      shared_->largest = std::max(shared_->largest, host.back());
    }
    shared_->device.resize(size());
    B::upload_bytes(shared_->device.data(), host.data(), host.size() * sizeof(Index));
  }

  Index size() const { return shared_ ? static_cast<Index>(shared_->host.size()) : 0; }
  /// The largest label; -1 without any.
  Index largest() const { return shared_ ? shared_->largest : -1; }
  std::span<const Index> host() const {
    return shared_ ? std::span<const Index>(shared_->host) : std::span<const Index>();
  }
  const Index* data() const { return shared_ ? shared_->device.data() : nullptr; }

 private:
  struct Shared {
    PoolVector<Index> host;
    Array<B, Index> device;
    Index largest = -1;
  };
  std::shared_ptr<Shared> shared_;
};

/// Mean over the batch of -log softmax(x)[label].
template <class B>
struct SoftmaxCrossEntropy {
  static constexpr bool saves_inputs = false, saves_output = false;
  Labels<B> labels;
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

/// The mean over the batch of -log softmax(logits)[label], in nats, of rank 0; logits (N, K), N
/// labels in [0, K). Throws ShapeError, or InvalidArgument for a label outside.
template <TensorLike X>
auto softmax_cross_entropy(const X& logits, const Labels<typename X::Backend>& labels) {
  const Shape& shape = logits.shape();
  const Index n = labels.size();
  require<ShapeError>(shape.rank() == 2 && shape[0] == n && n > 0,
                      "softmax_cross_entropy: needs logits (N, K) and N labels, N > 0, got ", shape,
                      " and ", n, " labels");
  require(labels.largest() < shape[1], "softmax_cross_entropy: label ", labels.largest(),
          " is outside [0, ", shape[1], ")");
  return record(SoftmaxCrossEntropy<typename X::Backend>{labels}, logits);
}
/// The same for any contiguous list of integers.
template <TensorLike X, std::ranges::contiguous_range List>
  requires std::integral<std::ranges::range_value_t<List>>
auto softmax_cross_entropy(const X& logits, const List& labels) {
  const Index classes = logits.shape().rank() == 2 ? logits.extent(1) : 0;
  for (const auto label : labels)
    require(classes == 0 || (std::cmp_greater_equal(label, 0) && std::cmp_less(label, classes)),
            "softmax_cross_entropy: label ", +label, " is outside [0, ", classes, ")");
  return softmax_cross_entropy(logits, Labels<typename X::Backend>(labels));
}

/// The mean of (a - b)^2 over all elements, of rank 0; a and b have the same shape.
template <TensorLike X, TensorLike Y>
auto mse_loss(const X& a, const Y& b) {
  require<ShapeError>(a.shape() == b.shape(), "mse_loss: shapes ", a.shape(), " and ", b.shape(),
                      " differ");
  return mean(square(a - b));
}

}  // namespace deq
