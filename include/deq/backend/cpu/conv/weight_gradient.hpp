// SPDX-License-Identifier: MIT
// dl/dw of a convolution, channels last: for every tap, or for every point of Winograd's tiles, the
// product of the input's transpose with the cotangent.
#pragma once

#include <deq/backend/cpu/conv/kernel.hpp>
#include <deq/backend/cpu/conv/layout.hpp>
#include <deq/backend/cpu/conv/packing.hpp>
#include <deq/backend/cpu/conv/winograd_conv.hpp>

namespace deq::detail {

/// The output columns [first, last) whose pixel under kernel column k lies inside the image; lines
/// alike.
struct Inside {
  Index first, last;
  Inside(Index extent, Index out_extent, Index k, Index stride, Index padding)
      : first(std::max<Index>(0, (padding - k + stride - 1) / stride)),
        last(std::min(out_extent, (extent + padding - k - 1 + stride) / stride)) {
    last = std::max(last, first);
  }
};

/// dw += sum over the pixels of one strip of output lines of x dy^T, for R input channels and V
/// vectors of output channels; `sum` is their place in the packed gradient of one tap.
template <class S, class R, class V, class Width>
void add_strip(const Conv2dGeometry& g, Index tap, Index first_line, Index last_line, const S* x,
               const S* dy, S* sum, R r, V v, Width last_width) {
  const Index ky = tap / g.kernel_width, kx = tap % g.kernel_width;
  const Inside lines(g.height, g.out_height(), ky, g.stride, g.padding);
  const Inside columns(g.width, g.out_width(), kx, g.stride, g.padding);
  constexpr Index width = v * simd_width<S>;
  Block<S, r, v> block;
  block.clear();
  for (Index line = std::max(first_line, lines.first); line < std::min(last_line, lines.last);
       ++line) {
    const S* a = x + ((line * g.stride + ky - g.padding) * g.width +
                      (columns.first * g.stride + kx - g.padding)) *
                         g.in_channels;
    const S* b = dy + (line * g.out_width() + columns.first) * g.out_channels;
    block.add_outer(a, g.stride * g.in_channels, b, g.out_channels, columns.last - columns.first,
                    last_width);
  }
  block.write_to(sum, width, true);
}

/// dw (+)= sum over the samples, for any convolution. The team shares blocks of channels and, where
/// those are few, parts of the samples; what they are depends on extents alone, and the sums of the
/// parts are added in order: one order of summation for any number of threads.
template <class S>
void weight_gradient_direct(const Conv2dGeometry& g, const S* x, const S* dy, S* dw,
                            bool accumulate) {
  const Index taps = g.kernel_size(), size = packed_size<S>(g.in_channels, g.out_channels, taps);
  const Panels<S> panels(g.out_channels);
  // A strip of the cotangent's panel stays in the first-level cache for all taps and rows.
  const Index strip = std::max<Index>(1, 192 / std::max<Index>(1, g.out_width()));
  const Index rows = taps == 1 ? 4 * max_outer_rows : max_outer_rows;
  const Index row_blocks = (g.in_channels + rows - 1) / rows, blocks = panels.count() * row_blocks;
  constexpr Index enough = 8;
  const Index parts =
      std::clamp<Index>(enough / std::max<Index>(blocks, 1), 1, std::max<Index>(g.samples, 1));
  const Array<Cpu<S>> packed(parts * size);
  std::fill_n(packed.data(), packed.size(), S(0));
  parallel_for(parts * blocks, [&](Index task) {
    const Index part = task / blocks, p = task % blocks / row_blocks;
    const Index first = task % row_blocks * rows, channel = panels.first_channel(p);
    const auto whole_task = [&](auto v, auto last_width) {
      constexpr Index width = v * simd_width<S>;
      S* sums = packed.data() + part * size + channel * taps * g.in_channels;
      for (Index n = part * g.samples / parts; n < (part + 1) * g.samples / parts; ++n)
        for (Index line = 0; line < g.out_height(); line += strip)
          for_each_block<v, max_outer_rows>(
              std::min(rows, g.in_channels - first), [&](auto r, Index row) {
                for (Index tap = 0; tap < taps; ++tap)
                  add_strip(g, tap, line, std::min(g.out_height(), line + strip),
                            x + n * g.in_pixels() * g.in_channels + first + row,
                            dy + n * g.out_pixels() * g.out_channels + channel,
                            sums + (tap * g.in_channels + first + row) * width, r, v, last_width);
              });
    };
    with_panel(panels.width_of(p), [&](auto v) {
      with_width<S>(g.out_channels - channel - (v - 1) * simd_width<S>,
                    [&](auto last_width) { whole_task(v, last_width); });
    });
  });
  for (Index part = 1; part < parts; ++part)
    for (Index i = 0; i < size; ++i) packed.data()[i] += packed.data()[part * size + i];
  unpack_taps(g.in_channels, g.out_channels, taps, packed.data(), dw, accumulate);
}

/// A D A^T of one tile of a cotangent image, whatever of it lies outside being zero.
template <int M, class S>
void transform_cotangent(const Pixels<S>& image, Index line, Index column, Index channels,
                         const TransformedTiles<S>& to, Index tile) {
  constexpr int n = Winograd<M>::tile;
  const S* pixel[M * M];
  for (int i = 0; i < M * M; ++i) pixel[i] = image.at(line + i / M, column + i % M);
  S* const first = to.at(0, tile);
  const Index plane = to.plane;
  for_each_vector<S>(channels, [&](Index c, auto width) DEQ_INLINE {
    on_both_sides<n, M>([&](int i, int j) DEQ_INLINE { return load(pixel[i * M + j] + c, width); },
                        [](const auto& y, auto& m)
                            DEQ_INLINE { Winograd<M>::output_transposed(y, m); },
                        [&](int i, int j, const Simd<S>& m)
                            DEQ_INLINE { store(first + c + (i * n + j) * plane, m); });
  });
}

/// The same sum by Winograd's tiles, for 3 x 3 kernels of stride 1: some tiles of all samples are
/// transformed, then every point adds up their products, in order.
template <int M, class S>
void weight_gradient_winograd(const Conv2dGeometry& g, const S* x, const S* dy, S* dw,
                              bool accumulate) {
  constexpr int points = Winograd<M>::tile * Winograd<M>::tile;
  const Tiles<M> tiles(g);
  const Panels<S> panels(g.out_channels);
  const Array<Cpu<S>> packed(packed_size<S>(g.in_channels, g.out_channels, points));
  const Array<Cpu<S>> zeros(std::max(g.in_channels, g.out_channels));
  std::fill_n(zeros.data(), zeros.size(), S(0));

  // So many that reading the sums again for every group of tiles costs little.
  const Index all = g.samples * tiles.count(), together = std::min<Index>(all, 64);
  if (all == 0) std::fill_n(packed.data(), packed.size(), S(0));  // the sum of nothing
  const TransformedTiles<S> input(points, together, g.in_channels);
  const TransformedTiles<S> cotangent(points, together, panels.vectors * simd_width<S>);
  for (Index first = 0; first < all; first += together) {
    const Index count = std::min(together, all - first);
    parallel_for(count, [&](Index i) {
      const auto [n, line, column] =
          tiles.at((first + i) / tiles.count(), (first + i) % tiles.count());
      const Pixels<S> image(x + n * g.in_pixels() * g.in_channels, g.height, g.width, g.in_channels,
                            zeros.data());
      transform_input<M>(image, line - g.padding, column - g.padding, g.in_channels, input, i);
      const Pixels<S> of_output(dy + n * g.out_pixels() * g.out_channels, g.out_height(),
                                g.out_width(), g.out_channels, zeros.data());
      transform_cotangent<M>(of_output, line, column, g.out_channels, cotangent, i);
    });
    parallel_for(points, [&](Index point) {
      for (Index p = 0; p < panels.count(); ++p)
        with_panel(panels.width_of(p), [&](auto v) {
          constexpr Index width = v * simd_width<S>;
          S* const sums = packed.data() + panels.first_channel(p) * points * g.in_channels +
                          point * g.in_channels * width;
          for_each_block<v, max_outer_rows>(g.in_channels, [&](auto r, Index row) {
            Block<S, r, v> block;
            block.clear();
            block.add_outer(input.at(point, 0) + row, input.step(),
                            cotangent.at(point, 0) + panels.first_channel(p), cotangent.step(),
                            count, Whole{});
            block.write_to(sums + row * width, width, first > 0);
          });
        });
    });
  }
  unpack_winograd<M>(g.in_channels, g.out_channels, packed.data(), dw, accumulate);
}

}  // namespace deq::detail
