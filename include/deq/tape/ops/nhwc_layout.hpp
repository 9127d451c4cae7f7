// SPDX-License-Identifier: MIT
// Where channels-last images (N, H, W, C) come from and where they go: images in the other order of
// dimensions, and states, whose rows are images one after the other.
#pragma once

#include <span>
#include <utility>

#include <deq/tape/ops/shape.hpp>

namespace deq::nhwc {

/// The dimensions after the first, the samples, in the order of `Order`.
template <class B, class Order>
struct ChangeLayout {
  static constexpr bool saves_inputs = false, saves_output = false;

  Tensor<B> forward(const Tensor<B>& x) const {
    require<ShapeError>(x.shape().rank() == 4, Order::name, ": needs images, got ", x.shape());
    return x.derive(Order::key, [&] {
      Tensor<B> y(Order::result(x.shape()));
      const auto [rows, columns] = Order::matrix(x.shape());
      nhwc_transpose(B{}, x.extent(0), rows, columns, x.data(), y.data(), false);
      return y;
    });
  }
  void vjp(const Reverse<B>& r) const {
    if (!r.grad[0]) return;
    const auto [out, accumulate] = r.grad[0].target();
    const auto [rows, columns] = Order::matrix(r.grad[0].shape());
    nhwc_transpose(B{}, r.grad[0].shape()[0], columns, rows, r.cotangent.data(), out, accumulate);
  }
};

struct ChannelsLast {
  static constexpr const char* name = "nhwc::from_nchw";
  static constexpr int key = 0;  ///< of what a frozen tensor keeps
  static Shape result(const Shape& x) { return {x[0], x[2], x[3], x[1]}; }
  static std::pair<Index, Index> matrix(const Shape& x) { return {x[1], x[2] * x[3]}; }
};
struct ChannelsFirst {
  static constexpr const char* name = "nhwc::to_nchw";
  static constexpr int key = 1;
  static Shape result(const Shape& x) { return {x[0], x[3], x[1], x[2]}; }
  static std::pair<Index, Index> matrix(const Shape& x) { return {x[1] * x[2], x[3]}; }
};

/// Images (N, C, H, W) as (N, H, W, C). Of a frozen x it is made once.
template <TensorLike X>
auto from_nchw(const X& x) {
  return record(ChangeLayout<typename X::Backend, ChannelsLast>{}, x);
}
/// Images (N, H, W, C) as (N, C, H, W).
template <TensorLike X>
auto to_nchw(const X& x) {
  return record(ChangeLayout<typename X::Backend, ChannelsFirst>{}, x);
}

/// Images cut out of rows.
template <class B>
struct CutImages {
  static constexpr bool saves_inputs = false, saves_output = false;
  Index first;
  Shape image;

  Tensor<B> forward(const Tensor<B>& rows) const {
    const Tensor<B> y = Tensor<B>::image({rows.extent(0), image[0], image[1], image[2]});
    copy_strips(B{}, StripGeometry{rows.extent(0), image.size(), rows.extent(1), image.size()},
                rows.data() + first, y.image_data(), false);
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    if (!r.grad[0]) return;
    const Shape& rows = r.grad[0].shape();
    const auto [out, accumulate] = r.grad[0].target();
    if (!accumulate) B::fill(out, rows.size(), 0);
    copy_strips(B{}, StripGeometry{rows[0], image.size(), image.size(), rows[1]},
                r.cotangent.image_data(), out + first, true);
  }
};
/// Images one after the other in rows.
template <class B>
struct JoinImages {
  static constexpr bool saves_inputs = false, saves_output = false;
  PoolVector<Index> sizes{};

  bool takes_image(std::size_t) const { return true; }
  Tensor<B> forward(std::span<const Tensor<B>> images) {
    Index width = 0;
    for (const Tensor<B>& x : images) {
      sizes.push_back(x.shape().product(1, x.shape().rank()));
      width += sizes.back();
    }
    const Tensor<B> rows({images[0].extent(0), width});
    Index first = 0;
    B::side_by_side(static_cast<Index>(images.size()), [&](Index image) {
      const auto i = static_cast<std::size_t>(image);
      copy_strips(B{}, StripGeometry{rows.extent(0), sizes[i], sizes[i], width},
                  images[i].image_data(), rows.data() + first, false);
      first += sizes[i];
    });
    return rows;
  }
  void vjp(const Reverse<B>& r) const {
    const Index width = r.cotangent.extent(1);
    Index first = 0;
    for (std::size_t i = 0; i < sizes.size(); first += sizes[i++]) {
      if (!r.grad[i]) continue;
      const auto [out, accumulate] = r.grad[i].image_target();
      copy_strips(B{}, StripGeometry{r.cotangent.extent(0), sizes[i], width, sizes[i]},
                  r.cotangent.data() + first, out, accumulate);
    }
  }
};

/// The images (N, H, W, C) of shape `image` that begin at number `first` of every row of x (N, D).
/// Where images are stored as scalars, of a single row they share its memory.
template <TensorLike X>
X cut(const X& x, Index first, const Shape& image) {
  using B = typename X::Backend;
  if constexpr (compact_images<B>) {
    require<ShapeError>(x.shape().rank() == 2 && image.rank() == 3 && first >= 0 &&
                            first + image.size() <= x.extent(1),
                        "nhwc::cut: no image ", image, " at ", first, " of rows of ", x.shape());
    return record(CutImages<B>{first, image}, x);
  } else {
    return reshape(slice(x, 1, first, image.size()), {x.extent(0), image[0], image[1], image[2]});
  }
}
/// Images (N, ...) one after the other, (N, D); the inverse of some cuts.
template <TensorLike X>
X join(std::span<const X> images) {
  using B = typename X::Backend;
  require<ShapeError>(!images.empty(), "nhwc::join: needs at least one image");
  for (const X& x : images)
    require<ShapeError>(x.shape().rank() > 0 && x.extent(0) == images[0].extent(0),
                        "nhwc::join: ", x.shape(), " does not fit ", images[0].shape());
  if constexpr (compact_images<B>) {
    return record_list(JoinImages<B>{}, images);
  } else {
    PoolVector<X> rows;
    for (const X& x : images) rows.push_back(flatten(x));
    return concat(1, rows);
  }
}

}  // namespace deq::nhwc
