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
  Index line(Index c, Index i) const { return i / class_columns(c) * step() + c / step(); }
  Index column(Index c, Index i) const { return i % class_columns(c) * step() + c % step(); }

  /// Whether the pixels of class c see this line (column) of the kernel.
  bool sees(Index c, Index tap) const {
    return along(c / step(), tap / g_.kernel_width) && along(c % step(), tap % g_.kernel_width);
  }
  /// The input line seen from an output line under a kernel line; columns alike.
  Index source(Index out, Index k) const {
    return transposed_ ? (out + g_.padding - k) / g_.stride : out * g_.stride + k - g_.padding;
  }

 private:
  Index count(Index extent, Index first) const { return (extent - first + step() - 1) / step(); }
  Index step() const { return transposed_ ? g_.stride : 1; }
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
  const Panels<S> panels(out_channels);
  const Index taps = g.kernel_size(), out_width = print.out_width();
  const Index in_height = print.in_height(), in_width = print.in_width();
  const Array<Cpu<S>> zeros(in_channels);
  std::fill_n(zeros.data(), in_channels, S(0));
  struct Place {
    Index line, column, pixel;
  };
  parallel_for(pieces.count() * print.classes(), [&](Index index) {
    const auto piece = pieces[index / print.classes()];
    const Index c = index % print.classes();
    const Index first = std::min(piece.first, print.class_pixels(c));
    const Index count = std::min(piece.last, print.class_pixels(c)) - first;
    Array<Cpu<S>, Place> places(count);
    for (Index i = 0; i < count; ++i) {
      const Index line = print.line(c, first + i), column = print.column(c, first + i);
      places.data()[i] = {line, column, line * out_width + column};
    }

    const auto panel = [&](Index p, auto fused) {
      const S* weights = packed + panels.first_channel(p) * taps * in_channels;
      const Index width = panels.width_of(p) * simd_width<S>;
      PanelWriter<S, fused, true> writer(epilogue, print.out_height() * out_width, out_channels,
                                         panels.first_channel(p), y, piece.part);
      for (Index sample = piece.first_sample; sample < piece.last_sample; ++sample) {
        writer.select(sample);
        const Pixels<S> image(x + sample * in_height * in_width * in_channels, in_height, in_width,
                              in_channels, zeros.data());
        with_panel(panels.width_of(p), [&](auto v) {
          for_each_block<v>(count, [&](auto r, Index start) {
            const Place* place = places.data() + start;
            Block<S, r, v> block;
            block.clear();
            for (Index tap = 0, terms = 0; tap < taps; ++tap) {
              if (!print.sees(c, tap)) continue;
              const S* row[r];
              for (int i = 0; i < r; ++i)
                row[i] = image.at(print.source(place[i].line, tap / g.kernel_width),
                                  print.source(place[i].column, tap % g.kernel_width));
              const S* of_tap = weights + tap * in_channels * width;
              terms++ == 0 ? block.set_product(row, of_tap, in_channels)
                           : block.add_product(row, of_tap, in_channels);
            }
            unroll<v>([&](auto j) DEQ_INLINE {
              writer.write(j, [&](auto&& put) DEQ_INLINE {
                unroll<r>([&](auto i) DEQ_INLINE { put(place[i].pixel, block.sum[i][j]); });
              });
            });
          });
        });
      }
    };
    for (Index p = 0; p < panels.count(); ++p)
      is_fused(epilogue, out_channels) ? panel(p, std::true_type{}) : panel(p, std::false_type{});
  });
}

}  // namespace deq::detail
