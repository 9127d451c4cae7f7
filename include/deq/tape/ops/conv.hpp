// SPDX-License-Identifier: MIT
#pragma once

#include <functional>

#include <deq/tape/ops/broadcast.hpp>

namespace deq {

struct Conv2dOptions {
  Index stride = 1;
  Index padding = 0;  ///< lines of zeros on every side
};

/// The convolution of images (N, C, H, W) with a weight (O, C, kh, kw); throws what does not fit.
inline Conv2dGeometry conv2d_geometry(const char* name, const Shape& x, const Shape& w,
                                      const Conv2dOptions& o) {
  require<ShapeError>(w.rank() == 4 && x[1] == w[1], name, ": needs x (N, C, H, W) and a weight ",
                      "(O, C, kh, kw), got ", x, " and ", w);
  require(o.stride >= 1 && o.padding >= 0, name, ": needs stride >= 1 and padding >= 0, got ",
          o.stride, " and ", o.padding);
  require<ShapeError>(
      x[2] + 2 * o.padding >= w[2] && x[3] + 2 * o.padding >= w[3] && w[2] * w[3] > 0, name,
      ": a kernel of shape ", w, " is larger than the padded image ", x);
  return {x[0], x[1], x[2], x[3], w[0], w[2], w[3], o.stride, o.padding};
}

/// Two-dimensional cross-correlation.
template <class B>
struct Conv2d {
  using S = typename B::Scalar;
  static constexpr bool saves_inputs = true, saves_output = false;
  Conv2dOptions options;
  Conv2dGeometry geometry{};

  Tensor<B> forward(const Tensor<B>& x, const Tensor<B>& w) { return forward(x, w, Tensor<B>()); }
  Tensor<B> forward(const Tensor<B>& x, const Tensor<B>& w, const Tensor<B>& bias) {
    require<ShapeError>(x.shape().rank() == 4, "conv2d: needs x (N, C, H, W), got ", x.shape(),
                        " and the weight ", w.shape());
    geometry = conv2d_geometry("conv2d", x.shape(), w.shape(), options);
    require<ShapeError>(!bias || bias.shape() == Shape{w.extent(0)},
                        "conv2d: the bias must have the shape (O) of the weight ", w.shape(),
                        ", got ", bias.shape());
    Tensor<B> y({x.extent(0), w.extent(0), geometry.out_height(), geometry.out_width()});
    conv2d_forward(B{}, geometry, x.data(), w.data(), bias.data(), y.data());
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    const S* c = r.cotangent.data();
    if (r.grad[0]) {
      const auto [out, accumulate] = r.grad[0].target();
      conv2d_vjp_input(B{}, geometry, r.input[1].data(), c, out, accumulate);
    }
    if (r.grad[1]) {
      const auto [out, accumulate] = r.grad[1].target();
      conv2d_vjp_weight(B{}, geometry, r.input[0].data(), c, out, accumulate);
    }
    if (r.grad.size() > 2 && r.grad[2]) {
      const auto [out, accumulate] = r.grad[2].target();
      const Shape& full = r.cotangent.shape();
      broadcast_sum(B{}, LoopNest<2>(full, {Shape{1, full[1], 1, 1}, full}), std::identity{}, out,
                    accumulate, c);
    }
  }
};

/// y_n,o,i,j = sum_c,k,l w_o,c,k,l x_n,c,i*stride+k-padding,j*stride+l-padding, x being 0 outside.
/// x (N, C, H, W), w (O, C, kh, kw); y (N, O, H', W'), H' = (H + 2 padding - kh) / stride + 1,
/// rounded down. Throws ShapeError. The bits of a sample do not depend on the others. Memory, on
/// the CPU: the weights packed, and C H W + O H' W' numbers a thread; in the gradient of w a
/// sample.
template <TensorLike X, TensorLike W>
auto conv2d(const X& x, const W& w, Conv2dOptions options = {}) {
  return record(Conv2d<typename X::Backend>{options}, x, w);
}
/// The same plus a bias (O).
template <TensorLike X, TensorLike W, TensorLike V>
auto conv2d(const X& x, const W& w, const V& bias, Conv2dOptions options = {}) {
  return record(Conv2d<typename X::Backend>{options}, x, w, bias);
}

}  // namespace deq
