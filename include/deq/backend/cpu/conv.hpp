// SPDX-License-Identifier: MIT
// Convolution as one matrix product a sample: the patches that the output pixels see, as a matrix
// (patch x pixels), times the weights (out x patch). Samples never meet, so the bits of one do not
// depend on the others.
#pragma once

#include <deq/backend/cpu/gemm.hpp>

namespace deq {

namespace detail {

/// The output columns [first, last) whose pixel under kernel column kx lies inside the image.
struct InsideColumns {
  Index first, last;
  InsideColumns(const Conv2dGeometry& g, Index kx)
      : first(std::max<Index>(0, (g.padding - kx + g.stride - 1) / g.stride)),
        last(std::min(g.out_width(), (g.width + g.padding - kx - 1 + g.stride) / g.stride)) {
    last = std::max(last, Index{0});
    first = std::min(first, last);
  }
};

/// body(row, columns, pixels) for every row of the patch matrix of `channels` channels and every
/// output line: `columns` is that line within the patch matrix, `pixels` the input line it is taken
/// from, moved so that output column x sees pixels[x * stride]; null outside the image.
template <class S, class T, class Body>
void for_each_patch_line(const Conv2dGeometry& g, Index channels, S* image, T* patches, Body body) {
  for (Index c = 0; c < channels; ++c)
    for (Index ky = 0; ky < g.kernel_height; ++ky)
      for (Index kx = 0; kx < g.kernel_width; ++kx) {
        const InsideColumns inside(g, kx);
        for (Index y = 0; y < g.out_height(); ++y, patches += g.out_width()) {
          const Index line = y * g.stride + ky - g.padding;
          const bool visible = line >= 0 && line < g.height && inside.first < inside.last;
          body(visible ? image + (c * g.height + line) * g.width +
                             (inside.first * g.stride + kx - g.padding)
                       : nullptr,
               patches, inside);
        }
      }
}

/// The patches of `channels` channels, (channels * kernel size) x out_pixels.
template <class S>
void gather_patches(const Conv2dGeometry& g, Index channels, const S* image, S* patches) {
  for_each_patch_line(g, channels, image, patches, [&](const S* from, S* to, InsideColumns inside) {
    if (!from) {
      std::fill_n(to, g.out_width(), S(0));
      return;
    }
    std::fill_n(to, inside.first, S(0));
    const Index n = inside.last - inside.first;
    if (g.stride == 1)
      std::copy_n(from, n, to + inside.first);
    else
      for (Index x = 0; x < n; ++x) to[inside.first + x] = from[x * g.stride];
    std::fill_n(to + inside.last, g.out_width() - inside.last, S(0));
  });
}

/// image += what its pixels are in all the patches: the transpose of gather_patches.
template <class S>
void scatter_patches(const Conv2dGeometry& g, Index channels, const S* patches, S* image) {
  for_each_patch_line(g, channels, image, patches, [&](S* to, const S* from, InsideColumns inside) {
    if (!to) return;
    const Index n = inside.last - inside.first;
    for (Index x = 0; x < n; ++x) to[x * g.stride] += from[inside.first + x];
  });
}

}  // namespace detail

/// y = x * w + bias (a null bias is none).
template <class S>
void conv2d_forward(Cpu<S>, const Conv2dGeometry& g, const S* x, const S* w, const S* bias, S* y) {
  const Index pixels = g.out_pixels(), patch = g.patch();
  const auto weights = detail::matrix(w, g.out_channels, patch, patch);
  parallel_for(g.samples, [&](Index n) {
    const S* image = x + n * g.in_channels * g.in_pixels();
    S* out = y + n * g.out_channels * pixels;
    Array<Cpu<S>> patches;
    if (!g.pointwise()) {
      patches.resize(patch * pixels);
      detail::gather_patches(g, g.in_channels, image, patches.data());
      image = patches.data();
    }
    if (bias)
      for (Index o = 0; o < g.out_channels; ++o) std::fill_n(out + o * pixels, pixels, bias[o]);
    detail::multiply(weights, detail::matrix(image, patch, pixels, pixels),
                     detail::matrix(out, g.out_channels, pixels, pixels), bias != nullptr);
  });
}

/// dx (+)= the transpose of the convolution applied to dy.
template <class S>
void conv2d_vjp_input(Cpu<S>, const Conv2dGeometry& g, const S* w, const S* dy, S* dx,
                      bool accumulate) {
  const Index pixels = g.out_pixels(), patch = g.patch();
  const auto weights = detail::matrix(w, g.out_channels, patch, patch);
  parallel_for(g.samples, [&](Index n) {
    const auto cotangent =
        detail::matrix(dy + n * g.out_channels * pixels, g.out_channels, pixels, pixels);
    S* image = dx + n * g.in_channels * g.in_pixels();
    if (g.pointwise()) {
      detail::multiply(weights.transpose(), cotangent, detail::matrix(image, patch, pixels, pixels),
                       accumulate);
      return;
    }
    Array<Cpu<S>> patches(patch * pixels);
    detail::multiply(weights.transpose(), cotangent,
                     detail::matrix(patches.data(), patch, pixels, pixels), false);
    if (!accumulate) std::fill_n(image, g.in_channels * g.in_pixels(), S(0));
    detail::scatter_patches(g, g.in_channels, patches.data(), image);
  });
}

/// dw (+)= sum over the samples of dy patches^T. Shared by the team in blocks of input channels of
/// a fixed size, each of which goes through the samples in order: no partial sums, one order of
/// summation, and no patch is gathered twice.
template <class S>
void conv2d_vjp_weight(Cpu<S>, const Conv2dGeometry& g, const S* x, const S* dy, S* dw,
                       bool accumulate) {
  const Index pixels = g.out_pixels(), patch = g.patch();
  const Index block = std::max<Index>(1, 64 / g.kernel_size());
  const Index blocks = (g.in_channels + block - 1) / block;
  parallel_for(blocks, [&](Index i) {
    const Index first = i * g.in_channels / blocks;
    const Index channels = (i + 1) * g.in_channels / blocks - first;
    const Index rows = channels * g.kernel_size();
    auto out = detail::matrix(dw + first * g.kernel_size(), g.out_channels, rows, patch);
    if (!accumulate) out.setZero();
    Array<Cpu<S>> patches;
    if (!g.pointwise()) patches.resize(rows * pixels);
    for (Index n = 0; n < g.samples; ++n) {
      const S* image = x + (n * g.in_channels + first) * g.in_pixels();
      if (!g.pointwise()) {
        detail::gather_patches(g, channels, image, patches.data());
        image = patches.data();
      }
      detail::multiply(
          detail::matrix(dy + n * g.out_channels * pixels, g.out_channels, pixels, pixels),
          detail::matrix(image, rows, pixels, pixels).transpose(), out, true);
    }
  });
}

}  // namespace deq
