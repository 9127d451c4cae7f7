// SPDX-License-Identifier: MIT
// Convolution of NCHW images: turned channels-last, a sample at a time, for the engine of
// backend/cpu/conv, and back. Samples never meet, so the bits of one do not depend on the others.
#pragma once

#include <deq/backend/cpu/conv/schedule.hpp>
#include <deq/backend/cpu/conv/weight_gradient.hpp>

namespace deq {

namespace detail {

/// y (+)= plan(x) + bias for NCHW images.
template <class S>
void convolve_nchw(const ConvPlan<S>& plan, const Footprint& print, Index samples, const S* x,
                   const S* w, const S* bias, S* y, bool accumulate) {
  const Index in_pixels = print.in_height() * print.in_width();
  const Index out_pixels = print.out_height() * print.out_width();
  const Array<Cpu<S>> packed(plan.packed_size());
  plan.pack(w, packed.data());
  parallel_for(samples, [&](Index n) {
    const Array<Cpu<S>> from(in_pixels * plan.in), to(out_pixels * plan.out);
    transpose_plane(plan.in, in_pixels, x + n * plan.in * in_pixels, in_pixels, from.data(),
                    plan.in);
    plan.run(from.data(), packed.data(), {{.bias = bias}}, to.data());
    transpose_plane(out_pixels, plan.out, to.data(), plan.out, y + n * plan.out * out_pixels,
                    out_pixels, accumulate);
  });
}
inline Conv2dGeometry one_sample(Conv2dGeometry g) {
  g.samples = 1;
  return g;
}

}  // namespace detail

/// y = x * w + bias (a null bias is none).
template <class S>
void conv2d_forward(Cpu<S>, const Conv2dGeometry& g, const S* x, const S* w, const S* bias, S* y) {
  detail::convolve_nchw(detail::ConvPlan<S>(detail::one_sample(g), false),
                        detail::Footprint(g, false), g.samples, x, w, bias, y, false);
}

/// dx (+)= the transpose of the convolution applied to dy.
template <class S>
void conv2d_vjp_input(Cpu<S>, const Conv2dGeometry& g, const S* w, const S* dy, S* dx,
                      bool accumulate) {
  detail::convolve_nchw(detail::ConvPlan<S>(detail::one_sample(g), true),
                        detail::Footprint(g, true), g.samples, dy, w,
                        static_cast<const S*>(nullptr), dx, accumulate);
}

/// dw (+)= sum over the samples.
template <class S>
void conv2d_vjp_weight(Cpu<S>, const Conv2dGeometry& g, const S* x, const S* dy, S* dw,
                       bool accumulate) {
  const auto channels_last = [&](Index channels, Index pixels, const S* image) {
    Array<Cpu<S>> out(g.samples * channels * pixels);
    parallel_for(g.samples, [&](Index n) {
      const Index first = n * channels * pixels;
      detail::transpose_plane(channels, pixels, image + first, pixels, out.data() + first,
                              channels);
    });
    return out;
  };
  detail::weight_gradient(g, channels_last(g.in_channels, g.in_pixels(), x).data(),
                          channels_last(g.out_channels, g.out_pixels(), dy).data(), dw, accumulate);
}

}  // namespace deq
