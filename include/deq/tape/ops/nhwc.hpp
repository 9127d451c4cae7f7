// SPDX-License-Identifier: MIT
// Operations on channels-last images (N, H, W, C), in which the channels of a pixel are neighbours.
// They are what MDEQ's f is made of: each is one or two passes over its images, where the
// operations on NCHW images that it stands for are four to six. Images are stored as the backend's
// ImageScalar; all arithmetic is its Scalar's.
#pragma once

#include <array>
#include <functional>
#include <span>
#include <utility>

#include <deq/tape/ops/conv.hpp>
#include <deq/tape/ops/nhwc_layout.hpp>
#include <deq/tape/ops/norm.hpp>

namespace deq::nhwc {

namespace detail {

inline void require_images(const char* name, const Shape& x) {
  require<ShapeError>(x.rank() == 4, name, ": needs images (N, H, W, C), got ", x);
}
inline NormGeometry norm_geometry(const char* name, const Shape& x, Index groups) {
  require<ShapeError>(groups >= 1 && x[3] % groups == 0, name, ": the ", x[3], " channels of ", x,
                      " are not divided by ", groups, " groups");
  return {x[0], x[3], x[1] * x[2], x[3] / groups};
}
inline void require_channels(const char* name, const char* what, const Shape& x,
                             const Shape& parameter) {
  require<ShapeError>(parameter == Shape{x[3]}, name, ": ", what,
                      " needs one number for each of the ", x[3], " channels of ", x,
                      ", got shape ", parameter);
}

/// Where the gradient of an image goes, for the kernels that write several at once.
template <class B>
NhwcSink<ImageScalar<B>> sink(const Sink<B>& grad) {
  if (!grad) return {};
  const auto [data, accumulate] = grad.image_target();
  return {data, accumulate};
}

/// A normalisation that has been applied to u, and the way back from its output y.
template <class B>
struct AppliedNorm {
  using S = typename B::Scalar;
  NormGeometry geometry{};
  bool relu = false;
  bool average = false;         ///< y is the mean over the pixels
  bool constant = false;        ///< the statistics are not those of u
  Tensor<B> mean{}, inverse{};  ///< (N, groups), or (C) of a batch

  /// A tensor for one of the statistics.
  Tensor<B> statistic() const {
    return geometry.shared ? Tensor<B>({geometry.channels})
                           : Tensor<B>({geometry.samples, geometry.groups()});
  }

  /// Makes mean and inverse, for somebody to fill; the variance may be an empty tensor.
  NormStatistics<S> new_statistics(S eps, const Tensor<B>& variance) {
    mean = statistic();
    inverse = statistic();
    return {eps, mean.data(), variance.data(), inverse.data()};
  }

  NhwcNorm<S> with(const Tensor<B>& weight, const Tensor<B>& bias) const {
    return {geometry, mean.data(), inverse.data(), weight.data(), bias.data(), relu, average};
  }
  /// The sinks of weight and bias may be null; so may that of u, for which `masked` stands. An
  /// empty y stands for one without a residual. The cotangent of an average is (N, C).
  void vjp(const Tensor<B>& u, const Tensor<B>& weight, const Tensor<B>& bias, const Tensor<B>& y,
           const Tensor<B>& cotangent, const Tensor<B>& mask, const Sink<B>& of_weight,
           const Sink<B>& of_bias, const Sink<B>& of_residual, const Sink<B>& of_u,
           const Tensor<B>& masked) const {
    const auto norm = with(weight, bias);
    const Shape by_channel{geometry.samples, geometry.channels};
    Tensor<B> sums_d(by_channel), sums_du(by_channel);
    nhwc_normalize_vjp_sums(B{}, norm, u.image_data(), y.image_data(), cotangent.image_data(),
                            sums_d.data(), sums_du.data());
    if (of_weight) add_over_samples(sums_du, of_weight.target());
    if (of_bias) add_over_samples(sums_d, of_bias.target());
    if (!of_residual && !of_u && !masked) return;
    if (constant)
      sums_d = sums_du = {};
    else if (geometry.shared)
      for (Tensor<B>* sums : {&sums_d, &sums_du}) {
        const Tensor<B> total({geometry.channels});
        add_over_samples(*sums, {total.data(), false});
        *sums = total;
      }
    const auto residual = sink(of_residual);
    nhwc_normalize_vjp(B{}, norm, u.image_data(), y.image_data(), cotangent.image_data(),
                       sums_d.data(), sums_du.data(), mask.data(), residual, sink(of_u),
                       masked.image_data());
  }

 private:
  void add_over_samples(const Tensor<B>& sums, const typename Sink<B>::Target& to) const {
    broadcast_sum(B{}, LoopNest<2>(sums.shape(), {Shape{geometry.channels}, sums.shape()}),
                  std::identity{}, to.data, to.accumulate, static_cast<const S*>(sums.data()));
  }
};

}  // namespace detail

// --- Normalisation -----------------------------------------------------------------------------

struct GroupNormOptions {
  Index groups = 1;
  bool relu = false;
  double eps = 1e-5;
};

/// Group normalisation of images.
template <class B>
struct GroupNorm {
  using S = typename B::Scalar;
  using X = ImageScalar<B>;
  static constexpr bool saves_inputs = true, saves_output = false;
  GroupNormOptions options;
  detail::AppliedNorm<B> norm{};

  bool takes_image(std::size_t i) const { return i == 0; }
  Tensor<B> forward(const Tensor<B>& u) { return forward(u, {}, {}); }
  Tensor<B> forward(const Tensor<B>& u, const Tensor<B>& weight, const Tensor<B>& bias) {
    detail::require_images("nhwc::group_norm", u.shape());
    norm.geometry = detail::norm_geometry("nhwc::group_norm", u.shape(), options.groups);
    if (weight)
      detail::require_channels("nhwc::group_norm", "the weight", u.shape(), weight.shape());
    if (bias) detail::require_channels("nhwc::group_norm", "the bias", u.shape(), bias.shape());
    norm.relu = options.relu;
    nhwc_statistics(B{}, norm.geometry, u.image_data(),
                    norm.new_statistics(static_cast<S>(options.eps), {}));
    Tensor<B> y = Tensor<B>::image(u.shape());
    nhwc_normalize(B{}, norm.with(weight, bias), u.image_data(), static_cast<const X*>(nullptr),
                   y.image_data());
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    const bool affine = r.input.size() > 1;
    const Tensor<B> none;
    norm.vjp(r.input[0], affine ? r.input[1] : none, affine ? r.input[2] : none, none, r.cotangent,
             none, affine ? r.grad[1] : Sink<B>(), affine ? r.grad[2] : Sink<B>(), {}, r.grad[0],
             none);
  }
};

/// relu(group_norm(u)), the relu optional, of images (N, H, W, C). Throws ShapeError.
template <TensorLike X>
auto group_norm(const X& u, const GroupNormOptions& options) {
  return record(GroupNorm<typename X::Backend>{options}, u);
}
/// The same with weight (C) and bias (C): relu(group_norm(u) weight + bias).
template <TensorLike X, TensorLike W, TensorLike V>
auto group_norm(const X& u, const GroupNormOptions& options, const W& weight, const V& bias) {
  return record(GroupNorm<typename X::Backend>{options}, u, weight, bias);
}

// --- Convolution with all that follows it ------------------------------------------------------

struct ConvNormOptions {
  Index groups = 1;
  Conv2dOptions conv = {};
  bool relu = false;
  bool average = false;  ///< the mean of y over the pixels, (N, O), takes its place
  double eps = 1e-5;
};
struct ConvBatchNormOptions {
  Conv2dOptions conv = {};
  bool relu = false;
  bool average = false;  ///< the mean of y over the pixels, (N, O), takes its place
  double momentum = 0.1;
  double eps = 1e-5;
};
/// What a conv_norm may have beside its image and its weight; null is left out.
template <class V>
struct ConvNormParts {
  const V* scale = nullptr;     ///< (O), of the normalisation
  const V* shift = nullptr;     ///< (O), of the normalisation
  const V* bias = nullptr;      ///< (O), of the convolution
  const V* mask = nullptr;      ///< (N, O, 1, 1)
  const V* addend = nullptr;    ///< of the shape of the output
  const V* residual = nullptr;  ///< of the shape of the output
};

/// A convolution, its normalisation and what belongs to them.
template <class B>
struct ConvNorm {
  using S = typename B::Scalar;
  using X = ImageScalar<B>;
  static constexpr bool saves_inputs = true, saves_output = true;
  static constexpr std::size_t x = 0, w = 1, scale = 2, shift = 3, bias = 4, mask = 5, addend = 6,
                               residual = 7, all = 8;

  ConvNormOptions options;
  BatchNormState<B>* batch;  ///< normalise over the batch; null: over groups of channels
  BatchNormMode mode;
  S momentum;
  bool recorded;  ///< somebody may ask for the VJP; otherwise u is normalised where it is
  /// Where each operand is in the list of inputs; -1 for one that is left out.
  std::array<int, all> place{};
  Conv2dGeometry geometry{};
  detail::AppliedNorm<B> norm{};
  Tensor<B> u{};  ///< what is normalised

  bool takes_image(std::size_t i) const {
    const auto k = static_cast<int>(i);
    return i == x || k == place[addend] || k == place[residual];
  }
  /// What is only added is not needed again.
  bool saves_input(std::size_t i) const {
    const auto k = static_cast<int>(i);
    return k != place[addend] && k != place[residual];
  }
  /// Where y was rectified shows in u, unless a residual was between.
  bool needs_output() const { return options.relu && place[residual] >= 0; }
  Tensor<B> forward(std::span<const Tensor<B>> in) {
    check(in);
    norm.relu = options.relu;
    norm.average = options.average;
    norm.constant = batch && mode == BatchNormMode::evaluate;
    const NhwcConvParts<S, X> parts{operand(in, bias).data(), operand(in, mask).data(),
                                    operand(in, addend).image_data()};
    const Tensor<B> weight = packed(in, false);
    const S eps = static_cast<S>(options.eps);
    if (norm.constant) {
      nhwc_conv2d(B{}, geometry, in[x].image_data(), weight.data(), parts, u.image_data());
      norm.mean = batch->running_mean;
      norm.inverse = deq::detail::inverse_deviation(batch->running_var, eps);
    } else {
      const Tensor<B> variance = batch ? norm.statistic() : Tensor<B>();
      nhwc_conv2d_statistics(B{}, geometry, norm.geometry, in[x].image_data(), weight.data(), parts,
                             u.image_data(), norm.new_statistics(eps, variance));
      if (batch) batch->count_in(norm.mean, variance, norm.geometry.count(), momentum);
    }
    Tensor<B> y = options.average ? Tensor<B>::image({u.extent(0), u.extent(3)})
                  : recorded      ? Tensor<B>::image(u.shape())
                                  : u;
    nhwc_normalize(B{}, norm.with(operand(in, scale), operand(in, shift)), u.image_data(),
                   static_cast<const X*>(operand(in, residual).image_data()), y.image_data());
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    const auto grad = [&](std::size_t k) {
      return place[k] < 0 ? Sink<B>() : r.grad[static_cast<std::size_t>(place[k])];
    };
    Tensor<B> of_conv;
    if (grad(x) || grad(w) || grad(bias)) of_conv = place_of_conv_cotangent(r, !grad(mask));
    norm.vjp(u, operand(r.input, scale), operand(r.input, shift), r.output, r.cotangent,
             operand(r.input, mask), grad(scale), grad(shift), grad(residual), grad(addend),
             of_conv);
    if (grad(x)) {
      const auto [out, accumulate] = grad(x).image_target();
      nhwc_conv2d_vjp_input(B{}, geometry, packed(r.input, true).data(), of_conv.image_data(), out,
                            accumulate);
    }
    if (grad(w)) {
      const auto [out, accumulate] = grad(w).target();
      nhwc_conv2d_vjp_weight(B{}, geometry, r.input[x].image_data(), of_conv.image_data(), out,
                             accumulate);
    }
    if (grad(bias)) {
      const auto [out, accumulate] = grad(bias).target();
      const Shape full{u.size() / u.extent(3), u.extent(3)};
      broadcast_sum(B{}, LoopNest<2>(full, {Shape{full[1]}, full}), std::identity{}, out,
                    accumulate, static_cast<const X*>(of_conv.image_data()));
    }
    if (grad(mask)) mask_vjp(r, grad(mask));
  }

 private:
  const Tensor<B>& operand(std::span<const Tensor<B>> in, std::size_t k) const {
    static const Tensor<B> none;
    return place[k] < 0 ? none : in[static_cast<std::size_t>(place[k])];
  }
  /// The cotangent of the convolution takes the place of that of y, where nobody else needs it, or
  /// of u.
  Tensor<B> place_of_conv_cotangent(const Reverse<B>& r, bool both_are_done) const {
    if (both_are_done && r.cotangent_is_free && !options.average) return r.cotangent;
    return both_are_done && r.for_the_last_time ? u : Tensor<B>::image(u.shape());
  }
  /// The cotangent of a mask is seldom asked for: the convolution it multiplies is computed again.
  void mask_vjp(const Reverse<B>& r, const Sink<B>& grad) const {
    const Tensor<B> du = Tensor<B>::image(u.shape()), conv = Tensor<B>::image(u.shape()), none;
    norm.vjp(u, operand(r.input, scale), operand(r.input, shift), r.output, r.cotangent, none, {},
             {}, {}, {}, du);
    nhwc_conv2d(B{}, geometry, r.input[x].image_data(), packed(r.input, false).data(),
                {.bias = operand(r.input, bias).data()}, conv.image_data());
    const NormGeometry& n = norm.geometry;
    const Shape full{n.samples, n.pixels, n.channels};
    const auto [out, accumulate] = grad.target();
    broadcast_sum(B{}, LoopNest<3>(full, {Shape{n.samples, 1, n.channels}, full, full}),
                  std::multiplies<S>{}, out, accumulate, static_cast<const X*>(du.image_data()),
                  static_cast<const X*>(conv.image_data()));
  }
  /// The weight as the kernels want it; made once for a weight that stays as it is, for every plan
  /// of a convolution.
  Tensor<B> packed(std::span<const Tensor<B>> in, bool transposed) const {
    constexpr int kinds = 2;  // from this one on
    const Conv2dGeometry& g = geometry;
    const DerivedKey key(transposed ? kinds + 1 : kinds, {g.height, g.width, g.stride, g.padding});
    return in[w].derive(key, [&] {
      Tensor<B> p({nhwc_packed_size(B{}, geometry, transposed)});
      nhwc_pack(B{}, geometry, transposed, in[w].data(), p.data());
      return p;
    });
  }
  void check(std::span<const Tensor<B>> in) {
    const char* name = batch ? "nhwc::conv_batch_norm" : "nhwc::conv_norm";
    const Shape &image = in[x].shape(), &weight = in[w].shape();
    detail::require_images(name, image);
    geometry =
        conv2d_geometry(name, {image[0], image[3], image[1], image[2]}, weight, options.conv);
    const Shape out{image[0], geometry.out_height(), geometry.out_width(), weight[0]};
    norm.geometry = detail::norm_geometry(name, out, batch ? out[3] : options.groups);
    norm.geometry.shared = batch != nullptr;
    for (const std::size_t k : {scale, shift})
      if (place[k] >= 0)
        detail::require_channels(name, "the normalisation", out, operand(in, k).shape());
    if (place[bias] >= 0)
      detail::require_channels(name, "the bias", out, operand(in, bias).shape());
    if (batch) {
      detail::require_channels(name, "the running mean", out, batch->running_mean.shape());
      detail::require_channels(name, "the running variance", out, batch->running_var.shape());
      if (mode == BatchNormMode::train) deq::detail::require_batch(name, norm.geometry, out);
    }
    for (const std::size_t k : {addend, residual})
      require<ShapeError>(place[k] < 0 || operand(in, k).shape() == out, name, ": ",
                          operand(in, k).shape(), " does not fit the output ", out);
    require<ShapeError>(place[mask] < 0 || operand(in, mask).shape() == Shape{out[0], out[3], 1, 1},
                        name, ": the mask must be (N, O, 1, 1), got ", operand(in, mask).shape());
    require(!options.average || place[residual] < 0, name, ": an average takes no residual");
    u = Tensor<B>::image(out);
  }
};

namespace detail {
template <class V, class Op>
V record_conv_norm(Op op, const V& x, const V& w, const ConvNormParts<V>& parts) {
  std::array<V, Op::all> list{x, w};
  op.place = {0, 1, -1, -1, -1, -1, -1, -1};
  std::size_t n = 2;
  const std::array<const V*, Op::all - Op::scale> optional{
      parts.scale, parts.shift, parts.bias, parts.mask, parts.addend, parts.residual};
  for (std::size_t k = 0; k < optional.size(); ++k)
    if (optional[k]) {
      op.place[Op::scale + k] = static_cast<int>(n);
      list[n++] = *optional[k];
    }
  return record_list(std::move(op), std::span<const V>(list.data(), n));
}
}  // namespace detail

/// y = relu(GN((x * w + bias) mask + addend) scale + shift + residual), every part but the
/// convolution and the normalisation GN (group_norm) optional. x (N, H, W, C), w (O, C, kh, kw); y
/// (N, H', W', O) as in deq::conv2d, or its average over the pixels, which then is all that is
/// written. The statistics are taken while the convolution writes; the rest is one more pass.
/// Throws ShapeError. The bits of a sample do not depend on the others. A frozen w is packed once.
template <TensorLike V>
V conv_norm(const V& x, const V& w, const ConvNormOptions& options,
            const ConvNormParts<V>& parts = {}) {
  using B = typename V::Backend;
  return detail::record_conv_norm(ConvNorm<B>{options, nullptr, BatchNormMode::train, 0, is_var<V>},
                                  x, w, parts);
}
/// The same with batch_norm in the place of GN, which reads the running statistics or counts the
/// batch into them.
template <TensorLike V>
V conv_batch_norm(const V& x, const V& w, BatchNormState<typename V::Backend>& state,
                  BatchNormMode mode, const ConvBatchNormOptions& options,
                  const ConvNormParts<V>& parts = {}) {
  using B = typename V::Backend;
  return detail::record_conv_norm(ConvNorm<B>{{.conv = options.conv,
                                               .relu = options.relu,
                                               .average = options.average,
                                               .eps = options.eps},
                                              &state,
                                              mode,
                                              static_cast<typename B::Scalar>(options.momentum),
                                              is_var<V>},
                                  x, w, parts);
}

// --- Resolution --------------------------------------------------------------------------------

/// An image plus enlarged ones.
template <class B>
struct UpsampleAdd {
  using S = typename B::Scalar;
  using X = ImageScalar<B>;
  static constexpr bool saves_inputs = false, saves_output = true;
  PoolVector<Index> factors;
  bool relu;
  PoolVector<NhwcUpsampling> geometries{};

  bool takes_image(std::size_t) const { return true; }
  bool needs_output() const { return relu; }
  Tensor<B> forward(const Tensor<B>& large, const Tensor<B>& small) {
    const std::array<Tensor<B>, 2> in{large, small};
    return forward(in);
  }
  Tensor<B> forward(std::span<const Tensor<B>> in) {
    const Tensor<B>& large = in[0];
    PoolVector<NhwcSmallImage<X>> images;
    for (std::size_t k = 0; k < factors.size(); ++k) {
      const Index factor = factors[k];
      require(factor >= 1, "nhwc::upsample_add: the factor must be >= 1, got ", factor);
      const Shape& s = in[k + 1].shape();
      detail::require_images("nhwc::upsample_add", s);
      require<ShapeError>(large.shape() == Shape{s[0], s[1] * factor, s[2] * factor, s[3]},
                          "nhwc::upsample_add: ", s, " enlarged ", factor, " times does not fit ",
                          large.shape());
      geometries.push_back({s[0], s[1], s[2], s[3], factor});
      images.push_back({geometries.back(), in[k + 1].image_data()});
    }
    Tensor<B> y = Tensor<B>::image(large.shape());
    nhwc_upsample_add(B{}, std::span<const NhwcSmallImage<X>>(images), large.image_data(), relu,
                      y.image_data());
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    Tensor<B> d = r.cotangent;  // of the sum
    std::size_t next = 0;
    if (relu) {  // the first one comes along
      if (!r.cotangent_is_free) d = Tensor<B>::image(d.shape());
      const NhwcUpsampling& g = geometries[next];
      const bool same = g.factor == 1;  // a handle will do
      nhwc_upsample_add_vjp(B{}, g, r.output.image_data(), r.cotangent.image_data(),
                            NhwcSink<X>{d.image_data(), false},
                            same ? NhwcSink<X>() : detail::sink(r.grad[1]));
      if (!same) ++next;
    }
    for (; next < geometries.size(); ++next) {
      const Sink<B>& grad = r.grad[next + 1];
      if (!grad) continue;
      if (geometries[next].factor == 1)
        grad.add(d);
      else
        nhwc_upsample_add_vjp(B{}, geometries[next], static_cast<const X*>(nullptr),
                              static_cast<const X*>(d.image_data()), {}, detail::sink(grad));
    }
    if (r.grad[0]) r.grad[0].add(d);
  }
};

/// large + small, every pixel of `small` repeated to a square of factor x factor; rectified if
/// `relu`. Both are images (N, H, W, C). Throws ShapeError.
template <TensorLike X, TensorLike Y>
auto upsample_add(const X& large, const Y& small, Index factor, bool relu = false) {
  return record(UpsampleAdd<typename X::Backend>{{factor}, relu}, large, small);
}
/// The first of the images plus all others, in one pass, other k enlarged factors[k] times.
template <TensorLike X>
X upsample_add(std::span<const X> images, std::span<const Index> factors, bool relu = false) {
  require<ShapeError>(
      !factors.empty() && images.size() == factors.size() + 1,
      "nhwc::upsample_add: needs a large image and a factor for each of the others, got ",
      images.size(), " images and ", factors.size(), " factors");
  return record_list(UpsampleAdd<typename X::Backend>{{factors.begin(), factors.end()}, relu},
                     images);
}

}  // namespace deq::nhwc
