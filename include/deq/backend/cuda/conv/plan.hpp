// SPDX-License-Identifier: MIT
// What the host decides about a convolution, and the index maps that both sides use. Nothing here
// needs a device.
#pragma once

#include <algorithm>

#include <deq/backend/geometry.hpp>

namespace deq::cuda {

/// Where the numbers of one convolution are, as an implicit product: row m of A is the patch of
/// output pixel m, its column k = tap * channels + c is channel c of the pixel under that tap; B
/// (k x out_channels) is the weight. The transpose of a convolution, which its input gradient is,
/// is another map of the same kind: there an output pixel meets only taps that the stride hits.
struct ImageMap {
  int samples, height, width, channels;     ///< what is read
  int out_height, out_width, out_channels;  ///< what is written
  int kernel_height, kernel_width, stride, padding;
  bool transposed;

  ImageMap(const Conv2dGeometry& g, bool transpose)
      : samples(static_cast<int>(g.samples)),
        height(static_cast<int>(transpose ? g.out_height() : g.height)),
        width(static_cast<int>(transpose ? g.out_width() : g.width)),
        channels(static_cast<int>(transpose ? g.out_channels : g.in_channels)),
        out_height(static_cast<int>(transpose ? g.height : g.out_height())),
        out_width(static_cast<int>(transpose ? g.width : g.out_width())),
        out_channels(static_cast<int>(transpose ? g.in_channels : g.out_channels)),
        kernel_height(static_cast<int>(g.kernel_height)),
        kernel_width(static_cast<int>(g.kernel_width)),
        stride(static_cast<int>(g.stride)),
        padding(static_cast<int>(g.padding)),
        transposed(transpose) {}

  DEQ_HOST_DEVICE int depth() const { return kernel_height * kernel_width * channels; }
  DEQ_HOST_DEVICE int pixels() const { return height * width; }
  DEQ_HOST_DEVICE int out_pixels() const { return out_height * out_width; }

  /// Where the taps of an output line (or column) begin; `line` makes lines of it.
  DEQ_HOST_DEVICE int origin(int out_line) const {
    return transposed ? out_line + padding : out_line * stride - padding;
  }
  /// The line under a tap, or -1 if there is none.
  DEQ_HOST_DEVICE int line(int from_origin, int tap, int extent) const {
    int at = transposed ? from_origin - tap : from_origin + tap;
    if (transposed) at = at % stride == 0 ? at / stride : -1;
    return at < extent ? at : -1;
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

  /// Tiles of 128 x 64, but narrow ones for few columns, and low ones where the others would leave
  /// processors without work.
  TilePlan(Index all_rows, Index all_columns, Index processors)
      : rows(128), columns(all_columns > 32 ? 64 : 32) {
    column_tiles = (all_columns + columns - 1) / columns;
    const auto tiles = [&] { return (all_rows + rows - 1) / rows; };
    if (tiles() * column_tiles < 2 * processors) rows = 64;
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

/// A weight packed as B: whole stages of the sum, whole tiles of columns, zeros in between.
struct PackedWeight {
  static constexpr Index depth_multiple = 32, column_multiple = 64;
  Index depth, columns;  ///< padded

  PackedWeight(Index k, Index n)
      : depth((k + depth_multiple - 1) / depth_multiple * depth_multiple),
        columns((n + column_multiple - 1) / column_multiple * column_multiple) {}
  Index size() const { return depth * columns; }
};

}  // namespace deq::cuda
