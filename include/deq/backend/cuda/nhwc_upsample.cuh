// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/cuda/divisor.hpp>
#include <deq/backend/cuda/pointwise.cuh>
#include <deq/backend/geometry.hpp>

namespace deq {

namespace cuda {

/// Pixels of the small image as a kernel walks over them, n channels a thread: a block has a line.
template <int n>
struct UpsampledLines {
  NhwcUpsampling g;
  Divisor by_packs, by_factor, by_height;

  explicit UpsampledLines(const NhwcUpsampling& upsampling)
      : g(upsampling),
        by_packs(std::max(static_cast<int>(g.channels / n), 1)),
        by_factor(static_cast<int>(g.factor)),
        by_height(std::max(static_cast<int>(g.height), 1)) {}

  DEQ_HOST_DEVICE int packs() const { return static_cast<int>(g.channels) / n; }
  /// Numbers of a line, small or large.
  DEQ_HOST_DEVICE Index small_line() const { return g.width * g.channels; }
  DEQ_HOST_DEVICE Index large_line() const { return small_line() * g.factor; }
};

template <int n, class S, class X>
__global__ void __launch_bounds__(threads)
    upsample_add_kernel(UpsampledLines<n> lines, RowSet samples, const X* large, const X* small,
                        X* y) {
  const NhwcUpsampling& g = lines.g;
  const int line = static_cast<int>(blockIdx.x), small_line = lines.by_factor.quotient(line);
  if (!samples.contains(lines.by_height.quotient(small_line))) return;
  const int count = static_cast<int>(lines.large_line()) / n;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
    const int pixel = lines.by_packs.quotient(i), pack = i - pixel * lines.packs();
    const Index to = line * lines.large_line() + static_cast<Index>(i) * n;
    const Pack<S, n> repeated =
        load_as<S, n>(small + small_line * lines.small_line() +
                      (lines.by_factor.quotient(pixel) * lines.packs() + pack) * n);
    Pack<S, n> sum = load_as<S, n>(large + to);
#pragma unroll
    for (int k = 0; k < n; ++k) {
      sum.word[k] += repeated.word[k];
      if (g.relu) sum.word[k] = rectified(sum.word[k]);
    }
    store_pack(y + to, as<X>(sum));
  }
}

template <int n, class S, class X>
__global__ void __launch_bounds__(threads)
    upsample_add_vjp_kernel(UpsampledLines<n> lines, RowSet samples, const X* y, const X* cotangent,
                            NhwcSink<X> of_large, NhwcSink<X> of_small) {
  const NhwcUpsampling& g = lines.g;
  const int line = static_cast<int>(blockIdx.x), factor = static_cast<int>(g.factor);
  if (!samples.contains(lines.by_height.quotient(line))) return;
  const int count = static_cast<int>(lines.small_line()) / n;
  constexpr int at_once = 4;  // are read before one is written, see chunk.cuh
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) {
    const int pixel = lines.by_packs.quotient(i), pack = i - pixel * lines.packs();
    Pack<S, n> sum = {};
    for (int down = 0; down < factor; ++down) {
      const Index first = (static_cast<Index>(line) * factor + down) * lines.large_line() +
                          (static_cast<Index>(pixel) * factor * lines.packs() + pack) * n;
      for (int right = 0; right < factor; right += at_once) {
        const Index place = first + right * g.channels;
        Pack<S, n> d[at_once] = {};
#pragma unroll
        for (int j = 0; j < at_once; ++j) {
          if (right + j >= factor) continue;
          d[j] = load_as<S, n>(cotangent + place + j * g.channels);
          if (!g.relu) continue;
          const Pack<S, n> ys = load_as<S, n>(y + place + j * g.channels);
#pragma unroll
          for (int k = 0; k < n; ++k) d[j].word[k] = before_relu(d[j].word[k], ys.word[k]);
        }
#pragma unroll
        for (int j = 0; j < at_once; ++j) {
          if (right + j < factor) put(of_large, place + j * g.channels, d[j]);
#pragma unroll
          for (int k = 0; k < n; ++k) sum.word[k] += d[j].word[k];
        }
      }
    }
    put(of_small, line * lines.small_line() + static_cast<Index>(i) * n, sum);
  }
}

}  // namespace cuda

// Images are stored as X.

/// y = relu(large + small, every small pixel repeated to a square).
template <class S, class X>
void nhwc_upsample_add(Cuda<S>, const NhwcUpsampling& g, const X* large, const X* small, X* y) {
  const auto add = [&](auto packs) {
    cuda::launch({.x = g.samples * g.height * g.factor}, cuda::upsample_add_kernel<packs, S, X>,
                 cuda::UpsampledLines<packs>(g), cuda::RowSet::of(g.samples), large, small, y);
  };
  cuda::with_packs(g.channels, add, large, small, y);
}
/// The cotangents of both, from y and its cotangent.
template <class S, class X>
void nhwc_upsample_add_vjp(Cuda<S>, const NhwcUpsampling& g, const X* y, const X* cotangent,
                           NhwcSink<X> of_large, NhwcSink<X> of_small) {
  const auto add = [&](auto packs) {
    cuda::launch({.x = g.samples * g.height}, cuda::upsample_add_vjp_kernel<packs, S, X>,
                 cuda::UpsampledLines<packs>(g), cuda::RowSet::of(g.samples), y, cotangent,
                 of_large, of_small);
  };
  cuda::with_packs(g.channels, add, y, cotangent, of_large.data, of_small.data);
}

}  // namespace deq
