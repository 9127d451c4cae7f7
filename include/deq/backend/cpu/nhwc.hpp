// SPDX-License-Identifier: MIT
// The kernels of the operations on channels-last images (tape/ops/nhwc.hpp): the engine of
// backend/cpu/conv as the tape calls it.
#pragma once

#include <span>

#include <deq/backend/cpu/conv/norm.hpp>
#include <deq/backend/cpu/conv/schedule.hpp>

namespace deq {

/// Numbers of a weight packed for the convolution, or for its transpose.
template <class S>
Index nhwc_packed_size(Cpu<S>, const Conv2dGeometry& g, bool transposed) {
  return detail::ConvPlan<S>(g, transposed).packed_size();
}
template <class S>
void nhwc_pack(Cpu<S>, const Conv2dGeometry& g, bool transposed, const S* w, S* packed) {
  detail::ConvPlan<S>(g, transposed).pack(w, packed);
}

/// u = (x * w + bias) mask + addend.
template <class S>
void nhwc_conv2d(Cpu<S>, const Conv2dGeometry& g, const S* x, const S* packed,
                 const NhwcConvParts<S>& parts, S* u) {
  detail::ConvPlan<S>(g, false).run(x, packed, {parts}, u);
}
/// dx (+)= the transpose of the convolution applied to dy.
template <class S>
void nhwc_conv2d_vjp_input(Cpu<S>, const Conv2dGeometry& g, const S* packed, const S* dy, S* dx,
                           bool accumulate) {
  const detail::Epilogue<S> epilogue{{.addend = accumulate ? dx : nullptr}};
  detail::ConvPlan<S>(g, true).run(dy, packed, epilogue, dx);
}
/// dw (+)= sum over the samples; dw is (out, in, kernel height, kernel width).
template <class S>
void nhwc_conv2d_vjp_weight(Cpu<S>, const Conv2dGeometry& g, const S* x, const S* dy, S* dw,
                            bool accumulate) {
  detail::weight_gradient(g, x, dy, dw, accumulate);
}

namespace detail {
/// The statistics of groups from the moments, in `parts` a sample, that take(moments) fills in.
template <class S, class Take>
void statistics_of_moments(const NormGeometry& n, Index parts, Take take,
                           const NormStatistics<S>& to) {
  MomentParts<S> moments{nullptr, n.channels, parts};
  Array<Cpu<S>> numbers(n.samples * parts * moments.part_size());
  moments.data = numbers.data();
  take(moments);
  group_statistics(n, moments, to);
}
}  // namespace detail

/// The same, and the statistics of the groups of u.
template <class S>
void nhwc_conv2d_statistics(Cpu<S>, const Conv2dGeometry& g, const NormGeometry& n, const S* x,
                            const S* packed, const NhwcConvParts<S>& parts, S* u,
                            const NormStatistics<S>& to) {
  const detail::ConvPlan<S> plan(g, false);
  const auto take = [&](const detail::MomentParts<S>& moments) {
    plan.run(x, packed, {parts, moments}, u);
  };
  detail::statistics_of_moments(n, plan.pieces.parts(), take, to);
}
/// The statistics of the groups of u.
template <class S>
void nhwc_statistics(Cpu<S>, const NormGeometry& n, const S* u, const NormStatistics<S>& to) {
  const auto take = [&](const detail::MomentParts<S>& moments) {
    detail::channel_moments(n, u, moments);
  };
  detail::statistics_of_moments(n, detail::pixel_pieces(n).parts(), take, to);
}

/// y = relu((u - mean) inverse weight + bias + residual), or the average of that over the pixels.
template <class S>
void nhwc_normalize(Cpu<S>, const NhwcNorm<S>& norm, const S* u, const S* residual, S* y) {
  detail::normalize(norm, u, residual, y);
}
template <class S>
void nhwc_normalize_vjp_sums(Cpu<S>, const NhwcNorm<S>& norm, const S* u, const S* y,
                             const S* cotangent, S* sums_d, S* sums_du) {
  detail::normalize_vjp_sums(norm, u, y, cotangent, sums_d, sums_du);
}
template <class S>
void nhwc_normalize_vjp(Cpu<S>, const NhwcNorm<S>& norm, const S* u, const S* y, const S* cotangent,
                        const S* sums_d, const S* sums_du, const S* mask, NhwcSink<S> of_residual,
                        NhwcSink<S> of_u, S* masked) {
  detail::normalize_vjp(norm, u, y, cotangent, sums_d, sums_du, mask, of_residual, of_u, masked);
}

/// The transposes of matrices, rows x columns, one a sample.
template <class S>
void nhwc_transpose(Cpu<S>, Index samples, Index rows, Index columns, const S* x, S* y,
                    bool accumulate) {
  const Index size = rows * columns;
  parallel_for(
      samples,
      [=](Index n) {
        detail::transpose_plane(rows, columns, x + n * size, columns, y + n * size, rows,
                                accumulate);
      },
      samples * size < 32768);
}

namespace detail {
/// body(place of a small pixel, place of a large pixel) for all large pixels of one small line.
template <class Body>
void for_each_upsampled(const NhwcUpsampling& g, Body body) {
  parallel_for(
      g.samples * g.height,
      [&](Index line) {
        for (Index x = 0; x < g.width; ++x)
          for (Index i = 0; i < g.factor; ++i)
            for (Index j = 0; j < g.factor; ++j) {
              const Index small = line * g.width + x;
              const Index large = (line * g.factor + i) * g.width * g.factor + x * g.factor + j;
              body(small * g.channels, large * g.channels, i == 0 && j == 0);
            }
      },
      g.samples * g.height * g.width * g.channels < 8192);
}
}  // namespace detail

/// y = relu(large + all small ones, every pixel repeated to a square), the relu optional, from the
/// first on.
template <class S>
void nhwc_upsample_add(Cpu<S>, std::span<const NhwcSmallImage<S>> small, const S* large, bool relu,
                       S* y) {
  for (std::size_t k = 0; k < small.size(); ++k) {
    const NhwcUpsampling& g = small[k].geometry;
    const S* const before = k == 0 ? large : y;
    const bool rectify = relu && k + 1 == small.size();
    detail::for_each_upsampled(g, [&](Index from, Index to, bool) {
      detail::for_each_vector<S>(g.channels, [&](Index c, auto width) DEQ_INLINE {
        const auto sum =
            detail::load(before + to + c, width) + detail::load(small[k].data + from + c, width);
        detail::store(y + to + c, rectify ? detail::rectified<S>(sum) : sum, width);
      });
    });
  }
}
/// The cotangents of large and of one small image, from that of y, and from y if there was a relu.
template <class S>
void nhwc_upsample_add_vjp(Cpu<S>, const NhwcUpsampling& g, const S* y, const S* cotangent,
                           NhwcSink<S> of_large, NhwcSink<S> of_small) {
  detail::for_each_upsampled(g, [&](Index small, Index large, bool first) {
    detail::for_each_vector<S>(g.channels, [&](Index c, auto width) DEQ_INLINE {
      auto d = detail::load(cotangent + large + c, width);
      if (y) d = detail::before_relu<S>(d, detail::load(y + large + c, width));
      detail::put(of_large, large + c, d, width);
      detail::put(NhwcSink<S>{of_small.data, of_small.accumulate || !first}, small + c, d, width);
    });
  });
}

}  // namespace deq
