// SPDX-License-Identifier: MIT
// The convolutions of channels-last images (tape/ops/nhwc.hpp): the engine of backend/cuda/conv as
// the tape calls it.
#pragma once

#include <deq/backend/cuda/conv/weight_gradient.cuh>
#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/cuda/moments.cuh>

namespace deq {

/// Numbers of a weight packed for the convolution, or for its transpose.
template <class S, class P>
Index nhwc_packed_size(Cuda<S, P>, const Conv2dGeometry& g, bool transposed) {
  return cuda::PackedWeight::words(g, transposed, cuda::Arithmetic<S, P>::numbers);
}
template <class S, class P>
void nhwc_pack(Cuda<S, P>, const Conv2dGeometry& g, bool transposed, const S* w, S* packed) {
  cuda::pack_weight<cuda::Arithmetic<S, P>>(g, transposed, w, packed);
}

// Images are stored as X.

/// u = (x * w + bias) mask + addend.
template <class S, class P, class X>
void nhwc_conv2d(Cuda<S, P>, const Conv2dGeometry& g, const X* x, const S* packed,
                 const std::type_identity_t<NhwcConvParts<S, X>>& parts, X* u) {
  cuda::convolve<cuda::Arithmetic<S, P>, S, X>(g, false, x, packed, {parts, u});
}
/// dx (+)= the transpose of the convolution applied to dy.
template <class S, class P, class X>
void nhwc_conv2d_vjp_input(Cuda<S, P>, const Conv2dGeometry& g, const S* packed, const X* dy, X* dx,
                           bool accumulate) {
  cuda::convolve<cuda::Arithmetic<S, P>, S, X>(g, true, dy, packed,
                                               {{.addend = accumulate ? dx : nullptr}, dx});
}
/// dw (+)= sum over the samples; dw is (out, in, kernel height, kernel width).
template <class S, class P, class X>
void nhwc_conv2d_vjp_weight(Cuda<S, P>, const Conv2dGeometry& g, const X* x, const X* dy, S* dw,
                            bool accumulate) {
  cuda::weight_gradient<cuda::Arithmetic<S, P>>(g, x, dy, dw, accumulate);
}
/// u = (x * w + bias) mask + addend, and the statistics of the groups of u.
template <class S, class P, class X>
void nhwc_conv2d_statistics(Cuda<S, P>, const Conv2dGeometry& g, const NormGeometry& n, const X* x,
                            const S* packed, const std::type_identity_t<NhwcConvParts<S, X>>& parts,
                            X* u, const NormStatistics<S>& to) {
  const Index a_sample = cuda::Segments(static_cast<int>(g.out_pixels())).a_sample;
  const cuda::Scratch<S> moments(g.samples * a_sample *
                                 cuda::MomentParts<S>::part_size(n.channels));
  cuda::convolve<cuda::Arithmetic<S, P>, S, X>(g, false, x, packed, {parts, u, moments.data()});
  cuda::group_statistics_of_moments(n, a_sample, moments.data(), to);
}

}  // namespace deq
