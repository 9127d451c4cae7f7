// SPDX-License-Identifier: MIT
#pragma once

#include <deq/tape/ops/broadcast.hpp>

namespace deq {

struct Conv2dOptions {
  Index stride = 1;
  Index padding = 0;  ///< lines of zeros on every side
};

/// Two-dimensional cross-correlation.
template <class B>
struct Conv2d {
  using S = typename B::Scalar;
  static constexpr bool saves_inputs = true, saves_output = false;
  Conv2dOptions options;
  Conv2dGeometry geometry{};

  Tensor<B> forward(const Tensor<B>& x, const Tensor<B>& w) { return forward(x, w, Tensor<B>()); }
  Tensor<B> forward(const Tensor<B>& x, const Tensor<B>& w, const Tensor<B>& bias) {
    require<ShapeError>(
        x.shape().rank() == 4 && w.shape().rank() == 4 && x.extent(1) == w.extent(1),
        "conv2d: needs x (N, C, H, W) and a weight (O, C, kh, kw), got ", x.shape(), " and ",
        w.shape());
    require(options.stride >= 1 && options.padding >= 0,
            "conv2d: needs stride >= 1 and padding >= 0, got ", options.stride, " and ",
            options.padding);
    geometry = {x.extent(0), x.extent(1), x.extent(2),    x.extent(3),    w.extent(0),
                w.extent(2), w.extent(3), options.stride, options.padding};
    require<ShapeError>(geometry.height + 2 * options.padding >= geometry.kernel_height &&
                            geometry.width + 2 * options.padding >= geometry.kernel_width &&
                            geometry.kernel_size() > 0,
                        "conv2d: a kernel of shape ", w.shape(),
                        " is larger than the padded image ", x.shape());
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
      broadcast_sum(
          B{}, LoopNest<2>(full, {Shape{1, full[1], 1, 1}, full}), [](S v) { return v; }, out,
          accumulate, c);
    }
  }
};

/// y_n,o,i,j = sum_c,k,l w_o,c,k,l x_n,c,i*stride+k-padding,j*stride+l-padding, x being 0 outside.
/// x (N, C, H, W), w (O, C, kh, kw); y (N, O, H', W'), H' = (H + 2 padding - kh) / stride + 1,
/// rounded down. Throws ShapeError. The bits of a sample do not depend on the others. Memory: C kh
/// kw H' W' numbers a thread.
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
