// SPDX-License-Identifier: MIT
// What the host decides about a convolution, and the index maps that both sides use. Nothing here
// needs a device.
#pragma once

#include <algorithm>
#include <limits>

#include <deq/backend/geometry.hpp>

namespace deq::cuda {

/// Where the numbers of one convolution are, as an implicit product: row m of A is the patch of
/// output pixel m, its column k = tap * channels + c is channel c of the pixel under that tap; B
/// (k x out_channels) is the weight.
///
/// The transpose of a convolution, which its input gradient is, is made of maps of the same kind,
/// one for each place that an output pixel can have in a square of stride x stride (a phase): there
/// the taps that meet a pixel at all are every stride-th, and following them backwards is a
/// convolution with stride 1.
struct ImageMap {
  /// Lines and columns are alike.
  struct Axis {
    int in, out;              ///< extents of what is read and, of this phase, of what is written
    int taps;                 ///< of the phase
    int stride, start;        ///< tap t of output i reads i * stride + start + t, if that is inside
    int out_step, out_first;  ///< output i is written at i * out_step + out_first
    int tap_step, tap_first;  ///< and tap t is tap t * tap_step + tap_first of the weight

    static Axis forward(Index in, Index out, Index kernel, Index stride, Index padding) {
      return {static_cast<int>(in),
              static_cast<int>(out),
              static_cast<int>(kernel),
              static_cast<int>(stride),
              -static_cast<int>(padding),
              1,
              0,
              1,
              0};
    }
    /// Of the transpose: `in` and `out` are those of the convolution, exchanged.
    static Axis transposed(Index in, Index out, Index kernel, Index stride, Index padding,
                           Index phase) {
      const Index first =
          (phase + padding) % stride;  // the lowest tap of the weight that meets one
      const Index taps = first < kernel ? (kernel - first + stride - 1) / stride : 0;
      const Index start = (phase + padding - first) / stride - (taps - 1);
      const Index count = phase < out ? (out - phase + stride - 1) / stride : 0;
      return {static_cast<int>(in),
              static_cast<int>(count),
              static_cast<int>(taps),
              1,
              static_cast<int>(start),
              static_cast<int>(stride),
              static_cast<int>(phase),
              -static_cast<int>(stride),
              static_cast<int>(first + (taps - 1) * stride)};
    }
    /// The line that tap 0 of an output line reads, were it inside.
    DEQ_HOST_DEVICE int origin(int i) const { return i * stride + start; }
    DEQ_HOST_DEVICE bool inside(int line) const {
      return static_cast<unsigned>(line) < static_cast<unsigned>(in);
    }
  };
  int samples, channels, out_channels;
  Axis y, x;
  int out_width, out_pixels;  ///< of the whole output

  /// Phases of a convolution, or of its transpose.
  static int phases(const Conv2dGeometry& g, bool transpose) {
    return transpose ? static_cast<int>(g.stride * g.stride) : 1;
  }
  ImageMap(const Conv2dGeometry& g, bool transpose, int phase = 0)
      : samples(static_cast<int>(g.samples)),
        channels(static_cast<int>(transpose ? g.out_channels : g.in_channels)),
        out_channels(static_cast<int>(transpose ? g.in_channels : g.out_channels)),
        y(transpose
              ? Axis::transposed(g.out_height(), g.height, g.kernel_height, g.stride, g.padding,
                                 phase / g.stride)
              : Axis::forward(g.height, g.out_height(), g.kernel_height, g.stride, g.padding)),
        x(transpose ? Axis::transposed(g.out_width(), g.width, g.kernel_width, g.stride, g.padding,
                                       phase % g.stride)
                    : Axis::forward(g.width, g.out_width(), g.kernel_width, g.stride, g.padding)),
        out_width(static_cast<int>(transpose ? g.width : g.out_width())),
        out_pixels(static_cast<int>(transpose ? g.in_pixels() : g.out_pixels())) {
    constexpr Index most = std::numeric_limits<int>::max();
    require(g.samples <= most && g.in_channels * g.in_pixels() <= most &&
                g.out_channels * g.out_pixels() <= most && g.patch() <= most &&
                g.out_channels * g.kernel_size() <= most,
            "CUDA: an image or a patch of a convolution has more than ", most, " numbers");
  }

  DEQ_HOST_DEVICE int depth() const { return y.taps * x.taps * channels; }
  DEQ_HOST_DEVICE int in_pixels() const { return y.in * x.in; }
  /// Pixels that this phase writes.
  DEQ_HOST_DEVICE int pixels() const { return y.out * x.out; }
  /// Where pixel p of the phase is in the whole output.
  DEQ_HOST_DEVICE int place(int p) const {
    return (p / x.out * y.out_step + y.out_first) * out_width + p % x.out * x.out_step +
           x.out_first;
  }
};

/// Rows of a product cut into segments, each of pixels of one sample, so that what is summed over a
/// segment belongs to that sample. The last segment of a sample may end early.
struct Segments {
  int pixels;  ///< of a sample
  int rows;    ///< of a segment: 16 or 32
  int a_sample;

  explicit Segments(int pixels_of_sample)
      : pixels(pixels_of_sample),
        rows(pixels_of_sample < 32 ? 16 : 32),
        a_sample((pixels_of_sample + rows - 1) / rows) {}

  struct Row {
    Index sample;
    int pixel;
  };
  /// The pixel may be beyond the last of its sample: then the row is empty.
  DEQ_HOST_DEVICE Row row(Index i) const {
    const Index segment = i / rows;
    return {segment / a_sample,
            static_cast<int>(segment % a_sample) * rows + static_cast<int>(i % rows)};
  }
  DEQ_HOST_DEVICE Index rows_of(Index samples) const { return samples * a_sample * rows; }
};

/// The tiles that a product is cut into.
struct TilePlan {
  Index rows, columns;  ///< of a tile
  Index row_tiles, column_tiles;

  /// Tiles of 128 x 64, but narrow ones for few columns, and otherwise low ones where the others
  /// would leave processors without work.
  TilePlan(Index all_rows, Index all_columns, Index processors)
      : rows(128), columns(all_columns > 32 ? 64 : 32) {
    column_tiles = (all_columns + columns - 1) / columns;
    const auto tiles = [&] { return (all_rows + rows - 1) / rows; };
    if (columns == 64 && tiles() * column_tiles < 2 * processors) rows = 64;
    row_tiles = tiles();
  }
};

/// Into how many parts the sum over `terms` is cut so that `tiles` times the parts keep the
/// processors busy; a part has at least `least` terms, and all but the last a multiple of it.
struct SumPlan {
  Index parts, terms_a_part;

  SumPlan(Index terms, Index tiles, Index processors, Index least) {
    const Index wanted = std::max<Index>(1, 2 * processors / std::max<Index>(tiles, 1));
    const Index blocks = std::max<Index>(1, (terms + least - 1) / least);
    const Index blocks_a_part = (blocks + wanted - 1) / wanted;
    terms_a_part = blocks_a_part * least;
    parts = (blocks + blocks_a_part - 1) / blocks_a_part;
  }
};

/// A weight packed as B, the terms of a column one after the other: whole stages of the sum, whole
/// tiles of columns, zeros in between.
struct PackedWeight {
  static constexpr Index depth_multiple = 32, column_multiple = 64;
  Index depth, columns;  ///< padded

  PackedWeight(Index k, Index n)
      : depth((k + depth_multiple - 1) / depth_multiple * depth_multiple),
        columns((n + column_multiple - 1) / column_multiple * column_multiple) {}
  explicit PackedWeight(const ImageMap& map) : PackedWeight(map.depth(), map.out_channels) {}
  /// Words, each of so many numbers and as large as one.
  Index words(Index numbers) const { return depth / numbers * columns; }

  /// Of all phases.
  static Index words(const Conv2dGeometry& g, bool transpose, Index numbers) {
    Index sum = 0;
    for (int phase = 0; phase < ImageMap::phases(g, transpose); ++phase)
      sum += PackedWeight(ImageMap(g, transpose, phase)).words(numbers);
    return sum;
  }
};

}  // namespace deq::cuda
