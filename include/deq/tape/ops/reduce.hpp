// SPDX-License-Identifier: MIT
#pragma once

#include <deq/tape/ops/broadcast.hpp>
#include <deq/tape/ops/elementwise.hpp>
#include <deq/tape/ops/shape.hpp>

namespace deq {

/// y = factor * sum of x over the dimensions in which `kept` is 1; y has the shape `kept`, to which
/// x's shape reduces as in broadcasting.
template <class B>
struct Sum {
  using S = typename B::Scalar;
  static constexpr bool saves_inputs = false, saves_output = false;
  Shape kept;
  S factor;
  Shape full{};

  Tensor<B> forward(const Tensor<B>& x) {
    full = x.shape();
    Tensor<B> y(kept);
    broadcast_sum(B{}, LoopNest<2>(full, {kept, full}), detail::Times<S>{factor}, y.data(), false,
                  x.data());
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    detail::broadcast_vjp<B>(r.grad[0], full, detail::Times<S>{factor}, r.cotangent);
  }
};

/// y = sum x_i^2, of rank 0.
template <class B>
struct SquaredNorm {
  using S = typename B::Scalar;
  static constexpr bool saves_inputs = true, saves_output = false;

  Tensor<B> forward(const Tensor<B>& x) const {
    Tensor<B> y(Shape{});
    broadcast_sum(B{}, LoopNest<2>(x.shape(), {Shape{}, x.shape()}), detail::Square{}, y.data(),
                  false, x.data());
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    const Tensor<B>& x = r.input[0];
    detail::broadcast_vjp<B>(r.grad[0], x.shape(), detail::PullBack<detail::Square>{}, r.cotangent,
                             x);
  }
};

namespace detail {

template <TensorLike X>
auto sum_over_axis(const char* name, const X& x, Index axis, bool keepdim, bool averages) {
  using B = typename X::Backend;
  using S = typename B::Scalar;
  const Shape& full = x.shape();
  require<ShapeError>(axis >= 0 && axis < full.rank(), name, ": no axis ", axis, " in shape ",
                      full);
  Shape kept = full;
  kept[axis] = 1;
  const S factor = averages ? 1 / static_cast<S>(full[axis]) : S(1);
  auto y = record(Sum<B>{kept, factor}, x);
  if (keepdim) return y;
  std::array<Index, static_cast<std::size_t>(Shape::max_rank)> extents{};
  std::size_t rank = 0;
  for (Index i = 0; i < full.rank(); ++i)
    if (i != axis) extents[rank++] = full[i];
  return reshape(y, Shape(std::span<const Index>(extents.data(), rank)));
}

}  // namespace detail

/// The sum of all elements, of rank 0.
template <TensorLike X>
auto sum(const X& x) {
  return record(Sum<typename X::Backend>{Shape{}, 1}, x);
}
/// The mean of all elements, of rank 0.
template <TensorLike X>
auto mean(const X& x) {
  using S = detail::ScalarOf<X>;
  return record(Sum<typename X::Backend>{Shape{}, 1 / static_cast<S>(x.shape().size())}, x);
}
/// The sum over one axis, which disappears, or stays with extent 1.
template <TensorLike X>
auto sum(const X& x, Index axis, bool keepdim = false) {
  return detail::sum_over_axis("sum", x, axis, keepdim, false);
}
/// The mean over one axis, which disappears, or stays with extent 1.
template <TensorLike X>
auto mean(const X& x, Index axis, bool keepdim = false) {
  return detail::sum_over_axis("mean", x, axis, keepdim, true);
}
/// ||x||^2, the sum of the squares of all elements, of rank 0.
template <TensorLike X>
auto squared_norm(const X& x) {
  return record(SquaredNorm<typename X::Backend>{}, x);
}

}  // namespace deq
