// SPDX-License-Identifier: MIT
// The four operators on two tensors, with NumPy's broadcasting: shapes are aligned at their ends,
// and an extent that is missing or 1 is repeated. The cotangent of an operand is summed over what
// was repeated, in one order.
#pragma once

#include <algorithm>
#include <functional>
#include <type_traits>

#include <deq/backend/geometry.hpp>
#include <deq/tape/record.hpp>

namespace deq {

/// The shape that a and b broadcast to; throws ShapeError if they do not.
inline Shape broadcast_shape(const char* operation, const Shape& a, const Shape& b) {
  Shape result = a.rank() >= b.rank() ? a : b;
  for (Index back = 1; back <= std::min(a.rank(), b.rank()); ++back) {
    const Index m = a[-back], n = b[-back];
    require<ShapeError>(m == n || m == 1 || n == 1, operation, ": shapes ", a, " and ", b,
                        " do not broadcast");
    result[-back] = m == 1 ? n : m;
  }
  return result;
}

namespace detail {

template <class B, class F, class... X>
Tensor<B> broadcast_forward(const Shape& shape, F f, const X&... x) {
  Tensor<B> y(shape);
  broadcast_sum(B{}, LoopNest<1 + sizeof...(X)>(shape, {shape, x.shape()...}), f, y.data(), false,
                x.data()...);
  return y;
}
/// sink (+)= the sum of f(x...) over the dimensions in which the sink's shape was repeated.
template <class B, class F, class... X>
void broadcast_vjp(const Sink<B>& sink, const Shape& shape, F f, const X&... x) {
  if (!sink) return;
  const auto [out, accumulate] = sink.target();
  broadcast_sum(B{}, LoopNest<1 + sizeof...(X)>(shape, {sink.shape(), x.shape()...}), f, out,
                accumulate, x.data()...);
}

struct Product {
  static constexpr const char* name = "operator*";
  template <class S>
  DEQ_HOST_DEVICE S operator()(S a, S b) const {
    return a * b;
  }
  struct ToA {
    template <class S>
    DEQ_HOST_DEVICE S operator()(S c, S, S b) const {
      return c * b;
    }
  };
  struct ToB {
    template <class S>
    DEQ_HOST_DEVICE S operator()(S c, S a, S) const {
      return c * a;
    }
  };
};
struct Ratio {
  static constexpr const char* name = "operator/";
  template <class S>
  DEQ_HOST_DEVICE S operator()(S a, S b) const {
    return a / b;
  }
  struct ToA {
    template <class S>
    DEQ_HOST_DEVICE S operator()(S c, S, S b) const {
      return c / b;
    }
  };
  struct ToB {
    template <class S>
    DEQ_HOST_DEVICE S operator()(S c, S a, S b) const {
      return -c * a / (b * b);
    }
  };
};

}  // namespace detail

/// y = a + sign b. Needs no saved values; a cotangent that need not be summed is handed on, not
/// copied.
template <int sign, class B>
struct AddSubtract {
  using S = typename B::Scalar;
  static constexpr bool saves_inputs = false, saves_output = false;

  Tensor<B> forward(const Tensor<B>& a, const Tensor<B>& b) const {
    const char* name = sign > 0 ? "operator+" : "operator-";
    using F = std::conditional_t<(sign > 0), std::plus<S>, std::minus<S>>;
    return detail::broadcast_forward<B>(broadcast_shape(name, a.shape(), b.shape()), F{}, a, b);
  }
  void vjp(const Reverse<B>& r) const {
    hand_on(r.grad[0], r.cotangent, std::identity{}, true);
    using F = std::conditional_t<(sign > 0), std::identity, std::negate<S>>;
    hand_on(r.grad[1], r.cotangent, F{}, sign > 0);
  }

 private:
  template <class F>
  static void hand_on(const Sink<B>& sink, const Tensor<B>& cotangent, F f, bool identity) {
    if (sink && identity && sink.shape() == cotangent.shape())
      sink.add(cotangent);
    else
      detail::broadcast_vjp<B>(sink, cotangent.shape(), f, cotangent);
  }
};

/// y = F(a, b), a product or a ratio.
template <class F, class B>
struct MultiplyDivide {
  using S = typename B::Scalar;
  static constexpr bool saves_inputs = true, saves_output = false;

  Tensor<B> forward(const Tensor<B>& a, const Tensor<B>& b) const {
    return detail::broadcast_forward<B>(broadcast_shape(F::name, a.shape(), b.shape()), F{}, a, b);
  }
  void vjp(const Reverse<B>& r) const {
    const Shape& shape = r.cotangent.shape();
    const Tensor<B>&a = r.input[0], &b = r.input[1];
    detail::broadcast_vjp<B>(r.grad[0], shape, typename F::ToA{}, r.cotangent, a, b);
    detail::broadcast_vjp<B>(r.grad[1], shape, typename F::ToB{}, r.cotangent, a, b);
  }
};

template <TensorLike X, TensorLike Y>
auto operator+(const X& a, const Y& b) {
  return record(AddSubtract<1, typename X::Backend>{}, a, b);
}
template <TensorLike X, TensorLike Y>
auto operator-(const X& a, const Y& b) {
  return record(AddSubtract<-1, typename X::Backend>{}, a, b);
}
template <TensorLike X, TensorLike Y>
auto operator*(const X& a, const Y& b) {
  return record(MultiplyDivide<detail::Product, typename X::Backend>{}, a, b);
}
template <TensorLike X, TensorLike Y>
auto operator/(const X& a, const Y& b) {
  return record(MultiplyDivide<detail::Ratio, typename X::Backend>{}, a, b);
}

}  // namespace deq
