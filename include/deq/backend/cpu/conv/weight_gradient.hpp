// SPDX-License-Identifier: MIT
// dl/dw of a convolution, channels last: for every tap the product of an input image's transpose
// with the cotangent.
#pragma once

#include <deq/backend/cpu/conv/kernel.hpp>
#include <deq/backend/cpu/conv/layout.hpp>
#include <deq/backend/cpu/conv/packing.hpp>

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
    for (Index n = columns.first; n < columns.last; ++n) {
      Simd<S> cotangent[v];
      unroll<v - 1>([&](auto j) DEQ_INLINE { cotangent[j] = load(b + j * simd_width<S>); });
      cotangent[v - 1] = load(b + (v - 1) * simd_width<S>, last_width);
      unroll<v>([&](auto j) DEQ_INLINE { hold(cotangent[j]); });
      unroll<r>([&](auto i) DEQ_INLINE {
        const Simd<S> pixel = broadcast(a[i]);
        unroll<v>([&](auto j) DEQ_INLINE { block.sum[i][j] += pixel * cotangent[j]; });
      });
      a += g.stride * g.in_channels;
      b += g.out_channels;
    }
  }
  unroll<r>([&](auto i) DEQ_INLINE {
    unroll<v>([&](auto j) DEQ_INLINE {
      S* to = sum + i * width + j * simd_width<S>;
      store(to, load(to) + block.sum[i][j]);
    });
  });
}

/// dw (+)= sum over the samples. The team shares blocks of channels of a size that depends on
/// nothing else, each of which goes through the samples in order: one order of summation for any
/// number of threads.
template <class S>
void weight_gradient(const Conv2dGeometry& g, const S* x, const S* dy, S* dw, bool accumulate) {
  const Index taps = g.kernel_size();
  const Panels<S> panels(g.out_channels);
  Array<Cpu<S>> packed(packed_size<S>(g.in_channels, g.out_channels, taps));
  std::fill_n(packed.data(), packed.size(), S(0));

  // A strip of the cotangent's panel stays in the first-level cache for all taps.
  const Index strip = std::max<Index>(1, 192 / std::max<Index>(1, g.out_width()));
  constexpr Index rows = 12;  // whole blocks, whatever the width of the panel
  const Index row_blocks = (g.in_channels + rows - 1) / rows;
  parallel_for(panels.count() * row_blocks, [&](Index task) {
    const Index p = task / row_blocks, first = task % row_blocks * rows;
    const Index channel = panels.first_channel(p);
    const auto whole_task = [&](auto v, auto last_width) {
      constexpr Index width = v * simd_width<S>;
      S* sums = packed.data() + channel * taps * g.in_channels;
      for_each_block<v>(std::min(rows, g.in_channels - first), [&](auto r, Index row) {
        for (Index n = 0; n < g.samples; ++n)
          for (Index line = 0; line < g.out_height(); line += strip)
            for (Index tap = 0; tap < taps; ++tap)
              add_strip(g, tap, line, std::min(g.out_height(), line + strip),
                        x + n * g.in_pixels() * g.in_channels + first + row,
                        dy + n * g.out_pixels() * g.out_channels + channel,
                        sums + (tap * g.in_channels + first + row) * width, r, v, last_width);
      });
    };
    with_panel(panels.width_of(p), [&](auto v) {
      const Index last = g.out_channels - channel - (v - 1) * simd_width<S>;
      last < simd_width<S> ? whole_task(v, First{last}) : whole_task(v, Whole{});
    });
  });
  unpack_taps(g.in_channels, g.out_channels, taps, packed.data(), dw, accumulate);
}

}  // namespace deq::detail
