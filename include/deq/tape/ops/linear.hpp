// SPDX-License-Identifier: MIT
// Products of matrices. The rows of a product are computed together, so that the last bits of a
// sample's result may depend on how many samples there are (never on their numbers). A frozen
// weight is packed once; then they do not.
#pragma once

#include <functional>

#include <deq/tape/ops/broadcast.hpp>

namespace deq {

namespace detail {
/// y (+)= x W^T, or y (+)= x W if `transposed`.
template <class B>
void multiply_by_weight(const Tensor<B>& x, const Tensor<B>& w, bool transposed,
                        typename B::Scalar* y, bool accumulate) {
  const Index m = x.extent(0), k = x.extent(1), n = w.extent(transposed ? 1 : 0);
  if (!w.is_frozen())
    return gemm(B{}, GemmGeometry{.m = m, .n = n, .k = k, .transpose_b = !transposed}, x.data(),
                w.data(), y, accumulate);
  const Tensor<B> packed = w.derive(transposed ? 1 : 0, [&] {
    Tensor<B> p({gemm_packed_size(B{}, n, k)});
    gemm_pack(B{}, n, k, !transposed, w.data(), p.data());
    return p;
  });
  gemm_packed(B{}, m, n, k, x.data(), packed.data(), y, accumulate);
}
}  // namespace detail

/// C = A B
template <class B>
struct Matmul {
  static constexpr bool saves_inputs = true, saves_output = false;

  Tensor<B> forward(const Tensor<B>& a, const Tensor<B>& b) const {
    require<ShapeError>(
        a.shape().rank() == 2 && b.shape().rank() == 2 && a.extent(1) == b.extent(0),
        "matmul: needs (m, k) and (k, n), got ", a.shape(), " and ", b.shape());
    const Index m = a.extent(0), k = a.extent(1), n = b.extent(1);
    Tensor<B> c({m, n});
    gemm(B{}, GemmGeometry{m, n, k}, a.data(), b.data(), c.data(), false);
    return c;
  }
  void vjp(const Reverse<B>& r) const {
    const Tensor<B>&a = r.input[0], &b = r.input[1];
    const Index m = a.extent(0), k = a.extent(1), n = b.extent(1);
    if (r.grad[0]) {
      const auto [out, accumulate] = r.grad[0].target();
      gemm(B{}, GemmGeometry{.m = m, .n = k, .k = n, .transpose_b = true}, r.cotangent.data(),
           b.data(), out, accumulate);
    }
    if (r.grad[1]) {
      const auto [out, accumulate] = r.grad[1].target();
      gemm(B{}, GemmGeometry{.m = k, .n = n, .k = m, .transpose_a = true}, a.data(),
           r.cotangent.data(), out, accumulate);
    }
  }
};

/// y = x W^T (+ b)
template <class B>
struct Linear {
  using S = typename B::Scalar;
  static constexpr bool saves_inputs = true, saves_output = false;

  Tensor<B> forward(const Tensor<B>& x, const Tensor<B>& w) const {
    return product(x, w, Tensor<B>());
  }
  Tensor<B> forward(const Tensor<B>& x, const Tensor<B>& w, const Tensor<B>& b) const {
    require<ShapeError>(w.shape().rank() == 2 && b.shape() == Shape{w.extent(0)},
                        "linear: the bias must have the shape (out) of the weight ", w.shape(),
                        ", got ", b.shape());
    return product(x, w, b);
  }
  void vjp(const Reverse<B>& r) const {
    const Tensor<B>&x = r.input[0], &w = r.input[1], &c = r.cotangent;
    const Index n = x.extent(0), in = x.extent(1), out = w.extent(0);
    if (r.grad[0]) {
      const auto [to, accumulate] = r.grad[0].target();
      detail::multiply_by_weight(c, w, true, to, accumulate);
    }
    if (r.grad[1]) {
      const auto [to, accumulate] = r.grad[1].target();
      gemm(B{}, GemmGeometry{.m = out, .n = in, .k = n, .transpose_a = true}, c.data(), x.data(),
           to, accumulate);
    }
    if (r.grad.size() > 2) detail::broadcast_vjp<B>(r.grad[2], c.shape(), std::identity{}, c);
  }

 private:
  static Tensor<B> product(const Tensor<B>& x, const Tensor<B>& w, const Tensor<B>& b) {
    require<ShapeError>(
        x.shape().rank() == 2 && w.shape().rank() == 2 && x.extent(1) == w.extent(1),
        "linear: needs x (N, in) and W (out, in), got ", x.shape(), " and ", w.shape());
    const Shape shape{x.extent(0), w.extent(0)};
    Tensor<B> y(shape);
    if (b)
      broadcast_sum(B{}, LoopNest<2>(shape, {shape, b.shape()}), std::identity{}, y.data(), false,
                    b.data());
    detail::multiply_by_weight(x, w, false, y.data(), static_cast<bool>(b));
    return y;
  }
};

/// (m, n) = (m, k) (k, n).
template <TensorLike X, TensorLike Y>
auto matmul(const X& a, const Y& b) {
  return record(Matmul<typename X::Backend>{}, a, b);
}
/// y = x W^T, with x (N, in), W (out, in).
template <TensorLike X, TensorLike W>
auto linear(const X& x, const W& w) {
  return record(Linear<typename X::Backend>{}, x, w);
}
/// y = x W^T + b, with x (N, in), W (out, in), b (out).
template <TensorLike X, TensorLike W, TensorLike V>
auto linear(const X& x, const W& w, const V& b) {
  return record(Linear<typename X::Backend>{}, x, w, b);
}

}  // namespace deq
