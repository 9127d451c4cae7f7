// SPDX-License-Identifier: MIT
// What the host decides about a convolution, and the index maps that both sides use. Nothing here
// needs a device.
#pragma once

#include <algorithm>
#include <limits>

#include <deq/backend/cuda/divisor.hpp>
#include <deq/backend/geometry.hpp>

namespace deq::cuda {

/// Words of a sum that are multiplied between two rounds through shared memory, its stages.
inline constexpr int stage_words = 16;

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
  /// Pixels are taken line by line or, where that can be, in squares of side x side, so that those
  /// under eight neighbouring rows of A lie together, and such eights all equally far apart.
  static constexpr int side = 8, square = side * side;

  int samples, channels, out_channels;
  Axis y, x;
  int out_width, out_pixels;  ///< of the whole output
  bool in_squares;            ///< two of a tile are neighbours in a line, or of two samples
  Divisor by_line;            ///< pixels, or squares, of a line of this phase

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
        out_pixels(static_cast<int>(transpose ? g.in_pixels() : g.out_pixels())),
        in_squares(y.stride == 1 && x.stride == 1 && y.out > 0 && y.out % side == 0 &&
                   (x.out % (2 * side) == 0 || (x.out == side && y.out == side))),
        by_line(std::max(in_squares ? x.out / side : x.out, 1)) {
    constexpr Index most = std::numeric_limits<int>::max();
    require(g.samples <= most && g.in_channels * g.in_pixels() <= most &&
                g.out_channels * g.out_pixels() <= most && g.patch() <= most &&
                g.out_channels * g.kernel_size() <= most,
            "CUDA: an image or a patch of a convolution has more than ", most, " numbers");
    require(g.out_channels * g.patch() <= most / 4,
            "CUDA: the weight of a convolution has more than ", most / 4, " numbers");
    // Segments fill what is left of a sample with empty rows.
    require(g.samples * (g.in_pixels() + 31) <= most && g.samples * (g.out_pixels() + 31) <= most,
            "CUDA: the images of a convolution have more than ", most, " pixels");
  }

  DEQ_HOST_DEVICE int depth() const { return y.taps * x.taps * channels; }
  DEQ_HOST_DEVICE int in_pixels() const { return y.in * x.in; }
  /// Pixels that this phase writes.
  DEQ_HOST_DEVICE int pixels() const { return y.out * x.out; }
  struct Pixel {
    int line, column;
  };
  /// Number p of the pixels of this phase.
  DEQ_HOST_DEVICE Pixel pixel(int p) const {
    if (!in_squares) {
      const int line = by_line.quotient(p);
      return {line, p - line * x.out};
    }
    const int number = p / square, down = by_line.quotient(number),
              across = number - down * (x.out / side);
    return {down * side + p % square / side, across * side + p % side};
  }
  /// Where it is in the whole output.
  DEQ_HOST_DEVICE int place(int p) const {
    const Pixel at = pixel(p);
    return (at.line * y.out_step + y.out_first) * out_width + at.column * x.out_step + x.out_first;
  }
};

/// Rows of a product cut into segments, each of pixels of one sample, so that what is summed over a
/// segment belongs to that sample. The last segment of a sample may end early.
struct Segments {
  int log_rows, rows;  ///< of a segment: 16, 32 or 64
  int a_sample;
  Divisor by_sample;  ///< rows of a sample

  explicit Segments(int pixels_of_sample)
      : log_rows(pixels_of_sample < 32        ? 4
                 : pixels_of_sample % 64 != 0 ? 5
                                              : 6),
        rows(1 << log_rows),
        a_sample((pixels_of_sample + rows - 1) / rows),
        by_sample(std::max(a_sample * rows, 1)) {}

  struct Row {
    Index sample;
    int pixel;
  };
  /// The pixel may be beyond the last of its sample: then the row is empty.
  DEQ_HOST_DEVICE Row row(Index i) const {
    const int sample = by_sample.quotient(static_cast<int>(i));
    return {sample, static_cast<int>(i) - sample * a_sample * rows};
  }
  DEQ_HOST_DEVICE Index rows_of(Index samples) const { return samples * a_sample * rows; }
  /// Segments of so many rows.
  template <class Integer>
  DEQ_HOST_DEVICE Integer in(Integer rows_of_some) const {
    return rows_of_some >> log_rows;
  }
};

/// Whether a row is a pixel of a sample that there is.
DEQ_HOST_DEVICE inline bool exists(const ImageMap& map, const Segments::Row& row) {
  return row.sample < map.samples && row.pixel < map.pixels();
}
/// Which pixel that is of the whole output of all samples.
DEQ_HOST_DEVICE inline int output_pixel(const ImageMap& map, const Segments::Row& row) {
  return static_cast<int>(row.sample) * map.out_pixels + map.place(row.pixel);
}

/// Images of 4 x 4 pixels, two by two: eight pixels of a tile that follow each other are one line
/// of both, and four such eights lie below each other.
struct PairedImages {
  static constexpr int side = 4;
  static bool are(const ImageMap& map) {
    return map.y.stride == 1 && map.x.stride == 1 && map.y.out == side && map.x.out == side;
  }
  /// Which row of the tile is number i in this order.
  DEQ_HOST_DEVICE static int row(int i) {
    const int pair = i / 32, line = i / 8 % 4, sample = i / 4 % 2, column = i % 4;
    return 32 * pair + 16 * sample + 4 * line + column;
  }
};

/// The pixels of the input that a tile of output pixels sees under all taps of the kernel, fetched
/// once for all of them, a slice of the channels at a time. Of every sample that the tile has
/// pixels of they are a rectangle. In shared memory a slice is a plane of pixels for every quad of
/// words, so that the pixels under eight neighbouring rows lie together.
struct Halo {
  /// Pixels that a tile has room for.
  static constexpr int most = 384;

  int samples = 1;                   ///< that a tile has pixels of, at most
  int height = 0, width = 0;         ///< of the rectangle of a sample
  Divisor by_sample{1}, by_line{1};  ///< its pixels, those of one of its lines

  Halo(const ImageMap& map, int rows) {
    const Segments segments(map.pixels());
    const int rows_of_sample = segments.a_sample * segments.rows;
    if (rows_of_sample == 0) return;
    // Tiles that begin anywhere in a sample see all lines of each.
    int lines = map.y.out, columns = map.x.out;
    if (rows_of_sample % rows != 0) {
      samples =
          rows % rows_of_sample == 0 ? rows / rows_of_sample : (rows - 2) / rows_of_sample + 2;
    } else if (map.in_squares) {
      lines = ImageMap::side;
      columns = rows / ImageMap::side;
    } else {
      lines = std::min(lines, rows % columns == 0 ? rows / columns : (rows - 2) / columns + 2);
    }
    height = (lines - 1) * map.y.stride + map.y.taps;
    width = (columns - 1) * map.x.stride + map.x.taps;
    if (!fits()) return;
    by_sample = Divisor(std::max(of_sample(), 1));
    by_line = Divisor(std::max(width, 1));
  }
  /// Whether it finds room. Not in int: an image may be wide.
  bool fits() const { return Index{height} * width * samples <= most; }
  DEQ_HOST_DEVICE int of_sample() const { return height * width; }
  DEQ_HOST_DEVICE int pixels() const { return samples * of_sample(); }
  /// Where one of its pixels is.
  struct Place {
    int sample, line, column;
  };
  DEQ_HOST_DEVICE Place place(int pixel) const {
    const int sample = by_sample.quotient(pixel), in_sample = pixel - sample * of_sample(),
              line = by_line.quotient(in_sample);
    return {sample, line, in_sample - line * width};
  }
  /// Of the pixel `distance` pixels on, without a division.
  DEQ_HOST_DEVICE Place after(Place at, const Place& distance) const {
    at.sample += distance.sample;
    at.line += distance.line;
    at.column += distance.column;
    if (at.column >= width) {
      at.column -= width;
      ++at.line;
    }
    if (at.line >= height) {
      at.line -= height;
      ++at.sample;
    }
    return at;
  }
  /// Words of a plane, and of all planes of a slice.
  DEQ_HOST_DEVICE int plane() const { return pixels() * 4; }
  DEQ_HOST_DEVICE int size() const { return plane() * (stage_words / 4); }

  /// Rows of the largest tile whose halo finds room, 128 or 64; 0: none does, or there are so few
  /// channels that a slice would be zeros. No matter how many samples there are.
  static int rows(const ImageMap& map) {
    if (map.channels < 8) return 0;
    for (const int rows : {128, 64})
      if (Halo(map, rows).fits()) return rows;
    return 0;
  }
};

/// The tiles that a product is cut into.
struct TilePlan {
  Index rows, columns;  ///< of a tile
  Index row_tiles, column_tiles;

  /// Columns of a wide tile, which reads the rows of A and the pixels of a halo less often. A
  /// hidden image of MDEQ has five times 32, 64, ... channels.
  static constexpr Index wide = 160;

  /// Columns of every tile. No matter how many rows there are.
  static Index columns_of(Index all_columns, Index most_rows, bool may_be_wide = false) {
    if (may_be_wide && most_rows == 128 && all_columns % wide == 0) return wide;
    return all_columns > 32 || most_rows < 128 ? 64 : 32;
  }
  /// Tiles of 128 x 64, but narrow ones for few columns and wide ones for many, and otherwise low
  /// ones where the others would leave more than half of the processors without work, with so many
  /// parts of their sums, or have more than `most_rows`.
  TilePlan(Index all_rows, Index all_columns, Index processors, Index most_rows = 128,
           bool may_be_wide = false, Index parts = 1)
      : rows(most_rows), columns(columns_of(all_columns, most_rows, may_be_wide)) {
    column_tiles = (all_columns + columns - 1) / columns;
    const auto tiles = [&] { return (all_rows + rows - 1) / rows; };
    if (columns == 64 && 2 * tiles() * column_tiles * parts < processors) rows = 64;
    row_tiles = tiles();
  }

  /// Tiles of columns that a block takes one after the other: as many as leave four blocks for
  /// every processor.
  Index tiles_a_block(Index processors) const {
    return std::clamp<Index>(row_tiles * column_tiles / (4 * processors), 1, column_tiles);
  }
};

/// The channel that a column of a product stands for. Of 32 columns, four pieces of eight, thread t
/// of four has columns 8 j + 2 t and 8 j + 2 t + 1 of every piece j (arithmetic.cuh); they are the
/// channels from 8 t on, so that what a thread has of a pixel lies together in memory.
DEQ_HOST_DEVICE constexpr int channel_of_column(int column) {
  const int piece = column / 8 % 4, thread = column / 2 % 4;
  return column / 32 * 32 + thread * 8 + piece * 2 + column % 2;
}

/// Processors of a large device. What decides about the order of a sample's sums counts on these,
/// not on those that there are: no bit of its outputs depends on the device.
inline constexpr Index reference_processors = 132;

/// Into how many parts the sum over `terms` is cut: `wanted`, or fewer. A part has at least `least`
/// terms, and all but the last a multiple of it.
struct SumPlan {
  Index parts, terms_a_part;

  SumPlan(Index terms, Index wanted, Index least) {
    const Index blocks = std::max<Index>(1, (terms + least - 1) / least);
    const Index blocks_a_part = (blocks + wanted - 1) / wanted;
    terms_a_part = blocks_a_part * least;
    parts = (blocks + blocks_a_part - 1) / blocks_a_part;
  }
  /// Into so many that those of all `tiles` keep the processors busy.
  static SumPlan of_tiles(Index terms, Index tiles, Index processors, Index least) {
    return {terms, std::max<Index>(1, 2 * processors / std::max<Index>(tiles, 1)), least};
  }
};

/// A weight packed as B, padded with zeros to whole stages of the sum and to whole tiles of
/// columns. Words are what is multiplied at a time, `numbers` of the sum each.
///
///     gathered     | column | word of the sum: tap, channel |
///     with a halo  | tile of columns | slice of 16 words of channels | tap | quad of words |
///                  | column of the tile | word of the quad |
///
/// so that what a tile needs next is always next in memory, in the order of shared memory. Columns
/// are outputs in the order of channel_of_column.
struct PackedWeight {
  static constexpr Index column_multiple = 64;
  int numbers;
  int halo_rows;          ///< of the largest tile with a halo, see Halo::rows
  bool halo;              ///< whether there is one
  Index channels;         ///< of a tap, padded with a halo
  Index depth;            ///< padded
  Index columns_of_tile;  ///< with a halo
  Index columns;          ///< padded

  PackedWeight(const ImageMap& map, int numbers_of_word)
      : numbers(numbers_of_word),
        halo_rows(Halo::rows(map)),
        halo(halo_rows > 0),
        channels(halo ? padded(map.channels, stage()) : map.channels),
        depth(padded(map.y.taps * map.x.taps * channels, stage())),
        columns_of_tile(TilePlan::columns_of(map.out_channels, halo_rows, may_be_wide(numbers))),
        columns(padded(map.out_channels, std::max(column_multiple, columns_of_tile))) {}
  /// Whether tiles with a halo may be: the numbers of a word have to leave room in registers for so
  /// many sums.
  static constexpr bool may_be_wide(int numbers_of_word) { return numbers_of_word > 1; }
  /// Numbers of the sum in a stage.
  Index stage() const { return stage_words * numbers; }
  /// Of the channels, with a halo.
  int slices() const { return static_cast<int>(channels / stage()); }
  /// Words, each as large as a number.
  Index words() const { return depth / numbers * columns; }
  /// Of a tile of columns.
  Index words_of_tile() const { return depth / numbers * columns_of_tile; }

  /// Of all phases.
  static Index words(const Conv2dGeometry& g, bool transpose, int numbers) {
    Index sum = 0;
    for (int phase = 0; phase < ImageMap::phases(g, transpose); ++phase)
      sum += PackedWeight(ImageMap(g, transpose, phase), numbers).words();
    return sum;
  }

  /// What word i stands for: of an output, `numbers` channels from the first of a tap on.
  struct Place {
    int output, tap, channel;
  };
  DEQ_HOST_DEVICE Place place(int i, int taps) const {
    const int words = static_cast<int>(depth) / numbers;  // of a column
    if (!halo) {
      const int column = i / words, k = (i - column * words) * numbers,
                a_tap = static_cast<int>(channels), tap = k / a_tap;
      return {channel_of_column(column), tap, k - tap * a_tap};
    }
    const int tile = static_cast<int>(columns_of_tile), block = stage_words * tile;
    const int blocks = i / block, in_block = i - blocks * block;
    const int blocks_of_tile = words / stage_words, tiles = blocks / blocks_of_tile,
              in_tile = blocks - tiles * blocks_of_tile, slice = in_tile / taps;
    const int quad = in_block / (4 * tile), in_quad = in_block - quad * 4 * tile;
    return {channel_of_column(tiles * tile + in_quad / 4), in_tile - slice * taps,
            (slice * stage_words + quad * 4 + in_quad % 4) * numbers};
  }

 private:
  static Index padded(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }
};

/// Into how many parts of its slices the sum of a convolution with a halo is cut: a long one of few
/// pixels, of which there would not be blocks enough. As if there were a batch for training on a
/// large device: neither the samples nor the device change a sample's bits.
inline SumPlan parts_of_slices(const ImageMap& map, const PackedWeight& weight) {
  constexpr Index samples = 128, least_taps = 90;
  const Index taps = std::max(map.y.taps * map.x.taps, 1),
              tile_rows = std::max(weight.halo_rows, 1),
              rows = Segments(map.pixels()).rows_of(samples);
  const Index tiles =
      (rows + tile_rows - 1) / tile_rows * (weight.columns / weight.columns_of_tile);
  return SumPlan::of_tiles(weight.halo ? weight.slices() : 0, tiles, reference_processors,
                           (least_taps + taps - 1) / taps);
}

/// All of that, for one phase of a convolution or of its transpose.
struct ConvPlan {
  ImageMap map;
  Segments segments;
  PackedWeight weight;
  SumPlan sum;
  TilePlan tiles;

  ConvPlan(const Conv2dGeometry& g, bool transpose, int phase, int numbers_of_word,
           Index processors)
      : map(g, transpose, phase),
        segments(map.pixels()),
        weight(map, numbers_of_word),
        sum(parts_of_slices(map, weight)),
        tiles(segments.rows_of(map.samples), map.out_channels, processors,
              weight.halo ? weight.halo_rows : 128,
              weight.halo && PackedWeight::may_be_wide(numbers_of_word), sum.parts) {}
};

}  // namespace deq::cuda
