// SPDX-License-Identifier: MIT
// Convolution of NCHW images: turned channels-last for the engine of backend/cuda/conv, and back.
#pragma once

#include <deq/backend/cuda/conv/weight_gradient.cuh>
#include <deq/backend/cuda/shape.cuh>

namespace deq {

namespace cuda {

/// Images (N, C, pixels) as (N, pixels, C).
template <class S>
Scratch<S> channels_last(Index samples, Index channels, Index pixels, const S* x) {
  Scratch<S> y(samples * channels * pixels);
  nhwc_transpose(Cuda<S>{}, samples, channels, pixels, x, y.data(), false);
  return y;
}

/// y (+)= map(x) + bias for NCHW images, with a weight (O, C, kh, kw).
template <class A, class S>
void convolve_nchw(const Conv2dGeometry& g, bool transposed, const S* x, const S* w, const S* bias,
                   S* y, bool accumulate) {
  const Index in_channels = transposed ? g.out_channels : g.in_channels,
              in_pixels = transposed ? g.out_pixels() : g.in_pixels(),
              out_channels = transposed ? g.in_channels : g.out_channels,
              out_pixels = transposed ? g.in_pixels() : g.out_pixels();
  const Scratch<S> packed(PackedWeight::words(g, transposed, A::numbers));
  pack_weight<A>(g, transposed, w, packed.data());
  const Scratch<S> from = channels_last(g.samples, in_channels, in_pixels, x),
                   to(g.samples * out_pixels * out_channels);
  convolve<A, S, S>(g, transposed, from.data(), packed.data(), {{.bias = bias}, to.data()});
  nhwc_transpose(Cuda<S>{}, g.samples, out_pixels, out_channels, to.data(), y, accumulate);
}

}  // namespace cuda

/// y = x * w + bias (a null bias is none).
template <class S, class P>
void conv2d_forward(Cuda<S, P>, const Conv2dGeometry& g, const S* x, const S* w, const S* bias,
                    S* y) {
  cuda::convolve_nchw<cuda::Arithmetic<S, P>>(g, false, x, w, bias, y, false);
}
/// dx (+)= the transpose of the convolution applied to dy.
template <class S, class P>
void conv2d_vjp_input(Cuda<S, P>, const Conv2dGeometry& g, const S* w, const S* dy, S* dx,
                      bool accumulate) {
  cuda::convolve_nchw<cuda::Arithmetic<S, P>>(g, true, dy, w, static_cast<const S*>(nullptr), dx,
                                              accumulate);
}
/// dw (+)= sum over the samples.
template <class S, class P>
void conv2d_vjp_weight(Cuda<S, P>, const Conv2dGeometry& g, const S* x, const S* dy, S* dw,
                       bool accumulate) {
  const cuda::Scratch<S> images = cuda::channels_last(g.samples, g.in_channels, g.in_pixels(), x),
                         cotangents =
                             cuda::channels_last(g.samples, g.out_channels, g.out_pixels(), dy);
  cuda::weight_gradient<cuda::Arithmetic<S, P>>(g, images.data(), cotangents.data(), dw,
                                                accumulate);
}

}  // namespace deq
