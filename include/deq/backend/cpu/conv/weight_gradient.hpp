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

/// Some output lines of some samples.
struct Strip {
  Index first_sample, last_sample, first_line, last_line;
};

/// dw += sum over the pixels of one strip of x dy^T, for R input channels and V vectors of output
/// channels; `sum` is their place in the packed gradient of one tap.
template <class S, class R, class V, class Width>
void add_strip(const Conv2dGeometry& g, Index tap, const Strip& strip, const S* x, const S* dy,
               S* sum, R r, V v, Width last_width) {
  const Index ky = tap / g.kernel_width, kx = tap % g.kernel_width;
  const Inside lines(g.height, g.out_height(), ky, g.stride, g.padding);
  const Inside columns(g.width, g.out_width(), kx, g.stride, g.padding);
  constexpr Index width = v * simd_width<S>;
  Block<S, r, v> block;
  block.clear();
  for (Index n = strip.first_sample; n < strip.last_sample; ++n)
    for (Index line = std::max(strip.first_line, lines.first);
         line < std::min(strip.last_line, lines.last); ++line) {
      const Index in_line = n * g.height + line * g.stride + ky - g.padding;
      const Index in_column = columns.first * g.stride + kx - g.padding;
      const Index out_line = n * g.out_height() + line;
      block.add_outer(x + (in_line * g.width + in_column) * g.in_channels, g.stride * g.in_channels,
                      dy + (out_line * g.out_width() + columns.first) * g.out_channels,
                      g.out_channels, columns.last - columns.first, last_width);
    }
  block.write_to(sum, width, true);
}

/// Parts of a sum over `terms`, each of them added up by one thread at a time, that end in `size`
/// numbers each: several where that is little, or where there is little else to share, `blocks` of
/// it. They depend on extents alone, and are put together in order, so that the order of summation
/// is one for any number of threads.
class SumParts {
 public:
  SumParts(Index terms, Index size, Index blocks)
      : terms_(terms),
        count_(std::clamp<Index>(size <= little ? enough : enough / std::max<Index>(blocks, 1), 1,
                                 std::max<Index>(terms, 1))) {}
  Index count() const { return count_; }
  Index first(Index part) const { return part * terms_ / count_; }
  Index last(Index part) const { return first(part + 1); }
  /// Whether no thread needs to share a part with others.
  bool enough_for_all() const { return inside_parallel || count_ >= num_threads(); }

  /// The sums of all parts, `size` apart, into those of the first one.
  template <class S>
  void put_together(S* sums, Index size) const {
    for (Index part = 1; part < count_; ++part)
      for (Index i = 0; i < size; ++i) sums[i] += sums[part * size + i];
  }

 private:
  static constexpr Index little = 65536, enough = 8;
  Index terms_, count_;
};

/// dw (+)= sum over the samples, for any convolution. The team shares parts of the samples, each of
/// which reads a strip once for all channels, or blocks of channels.
template <class S>
void weight_gradient_direct(const Conv2dGeometry& g, const S* x, const S* dy, S* dw,
                            bool accumulate) {
  const Index taps = g.kernel_size(), size = packed_size<S>(g.in_channels, g.out_channels, taps);
  const Panels<S> panels(g.out_channels);
  // A strip of the cotangent's panel stays in the first-level cache for all taps and rows.
  constexpr Index strip_pixels = 192;
  const Index lines = std::max<Index>(1, strip_pixels / std::max<Index>(1, g.out_width()));
  const Index together = std::max<Index>(1, lines / std::max<Index>(1, g.out_height()));
  const Index rows = taps == 1 ? 4 * max_outer_rows : max_outer_rows;
  const Index row_blocks = (g.in_channels + rows - 1) / rows, blocks = panels.count() * row_blocks;
  const SumParts parts((g.samples + together - 1) / together, size, blocks);
  const Index per_task = parts.enough_for_all() ? std::max<Index>(blocks, 1) : 1;
  const Index tasks = blocks / per_task;
  const Array<Cpu<S>> packed(parts.count() * size);
  std::fill_n(packed.data(), packed.size(), S(0));
  parallel_for(parts.count() * tasks, [&](Index task) {
    const Index part = task / tasks, first_block = task % tasks * per_task;
    const auto add_block = [&](Index block, const Strip& strip) {
      const Index p = block / row_blocks, first = block % row_blocks * rows,
                  channel = panels.first_channel(p);
      S* const sums = packed.data() + part * size + channel * taps * g.in_channels;
      with_panel(panels.width_of(p), [&](auto v) {
        with_width<S>(g.out_channels - channel - (v - 1) * simd_width<S>, [&](auto last_width) {
          for_each_block<v, max_outer_rows>(
              std::min(rows, g.in_channels - first), [&](auto r, Index row) {
                for (Index tap = 0; tap < taps; ++tap)
                  add_strip(g, tap, strip, x + first + row, dy + channel,
                            sums + (tap * g.in_channels + first + row) * v * simd_width<S>, r, v,
                            last_width);
              });
        });
      });
    };
    for (Index group = parts.first(part); group < parts.last(part); ++group)
      for (Index line = 0; line < g.out_height(); line += lines)
        for (Index block = first_block; block < first_block + per_task; ++block)
          add_block(block, {group * together, std::min((group + 1) * together, g.samples), line,
                            std::min(line + lines, g.out_height())});
  });
  parts.put_together(packed.data(), size);
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

/// The same sum by Winograd's tiles, for 3 x 3 kernels of stride 1: some tiles are transformed,
/// then every point adds up their products, in order. The team shares parts of all tiles, or tiles
/// and points.
template <int M, class S>
void weight_gradient_winograd(const Conv2dGeometry& g, const S* x, const S* dy, S* dw,
                              bool accumulate) {
  constexpr int points = Winograd<M>::tile * Winograd<M>::tile;
  const Tiles<M> tiles(g);
  const Panels<S> panels(g.out_channels);
  const Index size = packed_size<S>(g.in_channels, g.out_channels, points);
  const Array<Cpu<S>> zeros(std::max(g.in_channels, g.out_channels));
  std::fill_n(zeros.data(), zeros.size(), S(0));

  // So many that reading the sums again for every group of tiles costs little.
  constexpr Index together = 64;
  const Index all = g.samples * tiles.count();
  const SumParts parts((all + together - 1) / together, size, points);
  const Array<Cpu<S>> packed(parts.count() * size);
  if (all == 0) std::fill_n(packed.data(), packed.size(), S(0));  // the sum of nothing
  const auto add_part = [&](Index part) {
    const Index begin = parts.first(part) * together;
    const Index end = std::min(all, parts.last(part) * together);
    const Index most = std::min(together, end - begin);
    const TransformedTiles<S> input(points, most, g.in_channels);
    const TransformedTiles<S> cotangent(points, most, panels.vectors * simd_width<S>);
    for (Index first = begin; first < end; first += together) {
      const Index count = std::min(together, end - first);
      parallel_for(count, [&](Index i) {
        const auto [n, line, column] =
            tiles.at((first + i) / tiles.count(), (first + i) % tiles.count());
        const Pixels<S> image(x + n * g.in_pixels() * g.in_channels, g.height, g.width,
                              g.in_channels, zeros.data());
        transform_input<M>(image, line - g.padding, column - g.padding, g.in_channels, input, i);
        const Pixels<S> of_output(dy + n * g.out_pixels() * g.out_channels, g.out_height(),
                                  g.out_width(), g.out_channels, zeros.data());
        transform_cotangent<M>(of_output, line, column, g.out_channels, cotangent, i);
      });
      parallel_for(points, [&](Index point) {
        for (Index p = 0; p < panels.count(); ++p)
          with_panel(panels.width_of(p), [&](auto v) {
            constexpr Index width = v * simd_width<S>;
            S* const sums = packed.data() + part * size +
                            panels.first_channel(p) * points * g.in_channels +
                            point * g.in_channels * width;
            for_each_block<v, max_outer_rows>(g.in_channels, [&](auto r, Index row) {
              Block<S, r, v> block;
              block.clear();
              block.add_outer(input.at(point, 0) + row, input.step(),
                              cotangent.at(point, 0) + panels.first_channel(p), cotangent.step(),
                              count, Whole{});
              block.write_to(sums + row * width, width, first > begin);
            });
          });
      });
    }
  };
  parallel_for(parts.count(), add_part, !parts.enough_for_all());
  parts.put_together(packed.data(), size);
  unpack_winograd<M>(g.in_channels, g.out_channels, packed.data(), dw, accumulate);
}

}  // namespace deq::detail
