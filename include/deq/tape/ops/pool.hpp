// SPDX-License-Identifier: MIT
// Changes of resolution. The VJP of each of the two operations is the kernel of the other.
#pragma once

#include <deq/tape/ops/reduce.hpp>

namespace deq {

namespace detail {
/// `image` (N, C, H, W) with lines and columns multiplied by `numerator`, divided by `denominator`.
inline Shape resized(const Shape& image, Index numerator, Index denominator) {
  return {image[0], image[1], image[2] * numerator / denominator,
          image[3] * numerator / denominator};
}
inline PoolGeometry pool_geometry(const Shape& small, Index factor) {
  return {small[0] * small[1], small[2], small[3], factor};
}
}  // namespace detail

/// Nearest-neighbour enlargement.
template <class B>
struct UpsampleNearest {
  using S = typename B::Scalar;
  static constexpr bool saves_inputs = false, saves_output = false;
  Index factor;

  Tensor<B> forward(const Tensor<B>& x) const {
    require<ShapeError>(x.shape().rank() == 4, "upsample_nearest: needs x (N, C, H, W), got ",
                        x.shape());
    require(factor >= 1, "upsample_nearest: the factor must be >= 1, got ", factor);
    Tensor<B> y(detail::resized(x.shape(), factor, 1));
    spread_pixels(B{}, detail::pool_geometry(x.shape(), factor), S(1), x.data(), y.data(), false);
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    if (!r.grad[0]) return;
    const auto [out, accumulate] = r.grad[0].target();
    collect_pixels(B{}, detail::pool_geometry(r.grad[0].shape(), factor), S(1), r.cotangent.data(),
                   out, accumulate);
  }
};

/// Means over squares that do not overlap.
template <class B>
struct AvgPool2d {
  using S = typename B::Scalar;
  static constexpr bool saves_inputs = false, saves_output = false;
  Index size;

  Tensor<B> forward(const Tensor<B>& x) const {
    require(size >= 1, "avg_pool2d: the size must be >= 1, got ", size);
    require<ShapeError>(x.shape().rank() == 4 && x.extent(2) % size == 0 && x.extent(3) % size == 0,
                        "avg_pool2d: needs x (N, C, H, W) with H and W divided by ", size, ", got ",
                        x.shape());
    Tensor<B> y(detail::resized(x.shape(), 1, size));
    collect_pixels(B{}, detail::pool_geometry(y.shape(), size), weight(), x.data(), y.data(),
                   false);
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    if (!r.grad[0]) return;
    const auto [out, accumulate] = r.grad[0].target();
    spread_pixels(B{}, detail::pool_geometry(r.cotangent.shape(), size), weight(),
                  r.cotangent.data(), out, accumulate);
  }

 private:
  S weight() const { return 1 / static_cast<S>(size * size); }
};

/// Every pixel becomes a factor x factor square: (N, C, H factor, W factor) of (N, C, H, W).
template <TensorLike X>
auto upsample_nearest(const X& x, Index factor) {
  return record(UpsampleNearest<typename X::Backend>{factor}, x);
}
/// The mean of every k x k square: (N, C, H / k, W / k) of (N, C, H, W); k has to divide H and W.
template <TensorLike X>
auto avg_pool2d(const X& x, Index k) {
  return record(AvgPool2d<typename X::Backend>{k}, x);
}
/// The mean over all pixels: (N, C) of (N, C, H, W).
template <TensorLike X>
auto global_average_pool(const X& x) {
  const Shape& shape = x.shape();
  require<ShapeError>(shape.rank() == 4, "global_average_pool: needs x (N, C, H, W), got ", shape);
  return mean(reshape(x, {shape[0], shape[1], shape[2] * shape[3]}), 2);
}

}  // namespace deq
