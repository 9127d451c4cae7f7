// SPDX-License-Identifier: MIT
// Any convolution, and the transpose of any, as a product of matrices that are never formed: the
// rows of the left one are read from the image where they lie.
#pragma once

#include <deq/backend/cpu/conv/fusion.hpp>
#include <deq/backend/cpu/conv/packing.hpp>
#include <deq/backend/cpu/conv/pieces.hpp>

namespace deq::detail {

/// Which pixel of its input an output pixel sees under a tap of the kernel. Output pixels fall into
/// classes that see the same taps: all of them for a convolution; for its transpose, of which
/// pixels and taps meet only where the stride divides their distance, stride x stride classes.
class Footprint {
 public:
  Footprint(const Conv2dGeometry& g, bool transposed) : g_(g), transposed_(transposed) {}

  /// Extents of the images that are read and written.
  Index in_height() const { return transposed_ ? g_.out_height() : g_.height; }
  Index in_width() const { return transposed_ ? g_.out_width() : g_.width; }
  Index out_height() const { return transposed_ ? g_.height : g_.out_height(); }
  Index out_width() const { return transposed_ ? g_.width : g_.out_width(); }

  Index classes() const { return step() * step(); }
  Index class_columns(Index c) const { return count(out_width(), c % step()); }
  Index class_pixels(Index c) const { return count(out_height(), c / step()) * class_columns(c); }
  /// The first line and column of a class, and from one to the next.
  Index first_line(Index c) const { return c / step(); }
  Index first_column(Index c) const { return c % step(); }
  Index step() const { return transposed_ ? g_.stride : 1; }

  /// Whether the pixels of class c see this line (column) of the kernel.
  bool sees(Index c, Index tap) const {
    return along(c / step(), tap / g_.kernel_width) && along(c % step(), tap % g_.kernel_width);
  }
  /// The input line that an output line sees under the kernel's first line, and how much farther it
  /// sees under another line, of those that its class sees; columns alike.
  Index origin(Index out) const {
    return transposed_ ? (out + g_.padding) / g_.stride : out * g_.stride - g_.padding;
  }
  Index shift(Index k) const { return transposed_ ? -(k / g_.stride) : k; }

 private:
  Index count(Index extent, Index first) const { return (extent - first + step() - 1) / step(); }
  bool along(Index out, Index k) const { return (out + g_.padding - k) % step() == 0; }

  Conv2dGeometry g_;
  bool transposed_;
};

/// y = x * w, or the transpose of the convolution applied to x; channels last, w packed by
/// pack_taps. The pieces are cut by pixels of the largest class; moments need a single class.
template <class S>
void convolve_direct(const Conv2dGeometry& g, bool transposed, Index in_channels,
                     Index out_channels, const S* x, const S* packed, const Epilogue<S>& epilogue,
                     S* y, const Pieces& pieces) {
  const Footprint print(g, transposed);
  const Panels<S> panels(out_channels, in_channels);
  const Index taps = g.kernel_size(), out_width = print.out_width();
  const Index in_height = print.in_height(), in_width = print.in_width();
  const Array<Cpu<S>> zeros(in_channels);
  std::fill_n(zeros.data(), in_channels, S(0));
  struct Place {
    Index line, column, pixel;  // the first two of the input, the third of the output
  };
  struct Tap {
    Index down, right, index;
  };
  const SharedPanels shared(pieces.count() * print.classes(), panels.count());
  parallel_for(shared.count(), [&](Index index) {
    const auto piece = pieces[shared.piece(index) / print.classes()];
    const Index c = shared.piece(index) % print.classes();
    const Index first = std::min(piece.first, print.class_pixels(c));
    const Index count = std::min(piece.last, print.class_pixels(c)) - first;
    Array<Cpu<S>, Place> places(count);
    // An image may be narrower than the stride; some classes then have no pixels.
    const Index columns = std::max<Index>(print.class_columns(c), 1),
                last_column = print.first_column(c) + columns * print.step();
    Index line = print.first_line(c) + first / columns * print.step(),
          column = print.first_column(c) + first % columns * print.step();
    for (Index i = 0; i < count; ++i) {
      places.data()[i] = {print.origin(line), print.origin(column), line * out_width + column};
      column += print.step();
      if (column == last_column) {
        column = print.first_column(c);
        line += print.step();
      }
    }

    const Array<Cpu<S>, Tap> seen(taps);
    Tap* last_seen = seen.data();
    for (Index tap = 0; tap < taps; ++tap)
      if (print.sees(c, tap))
        *last_seen++ = {print.shift(tap / g.kernel_width), print.shift(tap % g.kernel_width), tap};

    const auto panel = [&](Index p, auto fused) {
      const S* const weights = packed + panels.first_channel(p) * taps * in_channels;
      const Index of_tap = in_channels * panels.numbers_of(p);
      PanelWriter<S, fused, true> writer(epilogue, print.out_height() * out_width, out_channels,
                                         panels.first_channel(p), panels.width_of(p), y,
                                         piece.part);
      for (Index sample = piece.first_sample; sample < piece.last_sample; ++sample) {
        writer.select(sample);
        const Pixels<S> image(x + sample * in_height * in_width * in_channels, in_height, in_width,
                              in_channels, zeros.data());
        with_panel(panels, p, [&](auto v) {
          for_each_block<v.sums>(count, [&](auto r, Index start) {
            const Place* place = places.data() + start;
            Block<S, r, v.sums, v.paired> block;
            block.clear();
            for (const Tap* tap = seen.data(); tap != last_seen; ++tap) {
              const S* row[r];
              for (int i = 0; i < r; ++i)
                row[i] = image.at(place[i].line + tap->down, place[i].column + tap->right);
              const S* const b = weights + tap->index * of_tap;
              tap == seen.data() ? block.set_product(row, b, in_channels)
                                 : block.add_product(row, b, in_channels);
            }
            const auto& done = block.folded();
            unroll<v>([&](auto j) DEQ_INLINE {
              writer.write(j, [&](auto&& put) DEQ_INLINE {
                unroll<r>([&](auto i) DEQ_INLINE { put(place[i].pixel, done.sum[i][j]); });
              });
            });
          });
        });
      }
    };
    for (Index p = shared.first(index); p < shared.last(index); ++p)
      is_fused(epilogue, out_channels) ? panel(p, std::true_type{}) : panel(p, std::false_type{});
  });
}

}  // namespace deq::detail
