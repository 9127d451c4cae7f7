// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>

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
  Divisor by_packs, by_height;

  explicit UpsampledLines(const NhwcUpsampling& upsampling)
      : g(upsampling),
        by_packs(std::max(static_cast<int>(g.channels / n), 1)),
        by_height(std::max(static_cast<int>(g.height), 1)) {}

  DEQ_HOST_DEVICE int packs() const { return static_cast<int>(g.channels) / n; }
  /// Numbers of a line, small or large.
  DEQ_HOST_DEVICE Index small_line() const { return g.width * g.channels; }
  DEQ_HOST_DEVICE Index large_line() const { return small_line() * g.factor; }
};

/// Several small images, of one large one; a block has a line of that.
template <int n, class X>
struct SmallImages {
  static constexpr int most = 3;
  struct Image {
    const X* data = nullptr;
    Divisor by_factor{1};
    Index line = 0;  ///< numbers of one
  };
  Image image[most];
  int packs, pixels;  ///< of a large line
  Divisor by_packs, by_height;
  bool relu;

  SmallImages(std::span<const NhwcSmallImage<X>> images, bool rectify)
      : packs(static_cast<int>(images[0].geometry.channels / n)),
        pixels(static_cast<int>(images[0].geometry.width * images[0].geometry.factor)),
        by_packs(std::max(packs, 1)),
        by_height(
            std::max(static_cast<int>(images[0].geometry.height * images[0].geometry.factor), 1)),
        relu(rectify) {
    for (std::size_t k = 0; k < images.size(); ++k) {
      const NhwcUpsampling& g = images[k].geometry;
      image[k] = {images[k].data, Divisor(static_cast<int>(g.factor)), g.width * g.channels};
    }
  }
};

/// Adds `count` of them, all of which is read before anything is written.
template <int count, int n, class S, class X>
__global__ void __launch_bounds__(threads)
    upsample_add_kernel(SmallImages<n, X> small, RowSet samples, const X* large, X* y) {
  const int line = static_cast<int>(blockIdx.x), packs = small.packs * small.pixels;
  if (!samples.contains(small.by_height.quotient(line))) return;
  for (int i = static_cast<int>(threadIdx.x); i < packs; i += threads) {
    const int pixel = small.by_packs.quotient(i), pack = i - pixel * small.packs;
    const Index to = (static_cast<Index>(line) * packs + i) * n;
    Pack<S, n> sum = load_as<S, n>(large + to), repeated[count];
#pragma unroll
    for (int k = 0; k < count; ++k) {
      const auto& image = small.image[k];
      repeated[k] = load_as<S, n>(image.data + image.by_factor.quotient(line) * image.line +
                                  (image.by_factor.quotient(pixel) * small.packs + pack) * n);
    }
#pragma unroll
    for (int k = 0; k < count; ++k)
#pragma unroll
      for (int c = 0; c < n; ++c) sum.word[c] += repeated[k].word[c];
    if (small.relu) {
#pragma unroll
      for (int c = 0; c < n; ++c) sum.word[c] = rectified(sum.word[c]);
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
          if (!y) continue;
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

/// y = relu(large + all small ones, every pixel repeated to a square), the relu optional.
template <class S, class X>
void nhwc_upsample_add(Cuda<S>, std::span<const NhwcSmallImage<X>> small, const X* large, bool relu,
                       X* y) {
  constexpr std::size_t most = cuda::SmallImages<1, X>::most;
  const auto add = [&](std::span<const NhwcSmallImage<X>> some, const X* to, bool rectify) {
    const NhwcUpsampling& g = some[0].geometry;
    const X* data[most] = {};
    for (std::size_t k = 0; k < some.size(); ++k) data[k] = some[k].data;
    const auto by_packs = [&](auto packs) {
      const auto start = [&](auto count) {
        cuda::launch(
            {.x = g.samples * g.height * g.factor}, cuda::upsample_add_kernel<count, packs, S, X>,
            cuda::SmallImages<packs, X>(some, rectify), cuda::RowSet::of(g.samples), to, y);
      };
      switch (some.size()) {
        case 1: return start(std::integral_constant<int, 1>{});
        case 2: return start(std::integral_constant<int, 2>{});
        default: return start(std::integral_constant<int, 3>{});
      }
    };
    cuda::with_packs(g.channels, by_packs, to, data[0], data[1], data[2], y);
  };
  for (std::size_t first = 0; first < small.size(); first += most) {
    const auto some = small.subspan(first, std::min(most, small.size() - first));
    add(some, first == 0 ? large : y, relu && first + some.size() == small.size());
  }
}
/// The cotangents of large and of one small image, from that of y, and from y if there was a relu.
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
