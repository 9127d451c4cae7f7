// SPDX-License-Identifier: MIT
// 3 x 3 convolutions of stride 1 by Winograd's tiles: transform a few tiles of the input, multiply,
// transform back, while all of it stays in the second-level cache.
#pragma once

#include <deq/backend/cpu/conv/fusion.hpp>
#include <deq/backend/cpu/conv/packing.hpp>
#include <deq/backend/cpu/conv/pieces.hpp>

namespace deq::detail {

/// A tile: its sample and its first output pixel.
struct Tile {
  Index sample, line, column;
};
/// The tiles of an image, line by line; those at the end may reach beyond it.
template <int M>
struct Tiles {
  Index lines, columns;
  explicit Tiles(const Conv2dGeometry& g)
      : lines((g.out_height() + M - 1) / M), columns((g.out_width() + M - 1) / M) {}
  Index count() const { return lines * columns; }
  Tile at(Index sample, Index tile) const {
    return {sample, tile / columns * M, tile % columns * M};
  }
};

/// (points, tiles, channels), every tile at a multiple of a vector; the planes a cache line apart
/// beyond that: at a distance of a power of two they would compete for the same lines of the cache.
template <class S>
struct TransformedTiles {
  Index channels, plane;
  Array<Cpu<S>> numbers;

  TransformedTiles(Index points, Index tiles, Index channels_)
      : channels(channels_),
        plane(tiles * step() + 64 / Index{sizeof(S)}),
        numbers(points * plane) {}
  /// From a tile to the next.
  Index step() const { return simd_count<S>(channels) * simd_width<S>; }
  S* at(Index point, Index tile) const { return numbers.data() + point * plane + tile * step(); }
};

/// B^T d B of one tile of an image, whatever of it lies outside being zero.
template <int M, class S>
void transform_input(const Pixels<S>& image, Index line, Index column, Index channels,
                     const TransformedTiles<S>& to, Index tile) {
  constexpr int n = Winograd<M>::tile;
  const S* pixel[n * n];
  for (int i = 0; i < n * n; ++i) pixel[i] = image.at(line + i / n, column + i % n);
  S* const first = to.at(0, tile);
  const Index plane = to.plane;
  for_each_vector<S>(channels, [&](Index c, auto width) DEQ_INLINE {
    on_both_sides<n, n>([&](int i, int j) DEQ_INLINE { return load(pixel[i * n + j] + c, width); },
                        [](const auto& a, auto& b) DEQ_INLINE { Winograd<M>::input(a, b); },
                        [&](int i, int j, const Simd<S>& u)
                            DEQ_INLINE { store(first + c + (i * n + j) * plane, u, width); });
  });
}

/// Products that are made before any is transformed back: of a few tiles by one panel, or of all
/// tiles by some panels.
struct ProductChunk {
  Index tiles, panels;
};

/// The products of all points, for tiles [first, first + n) and panels [first_panel, last_panel),
/// the channels of a tile one after the other.
template <class S>
void multiply_points(Index points, const TransformedTiles<S>& input, Index first, Index n,
                     const S* packed, const Panels<S>& panels, Index first_panel, Index last_panel,
                     const TransformedTiles<S>& product) {
  const Index depth = input.channels, from_step = input.step(), to_step = product.step();
  for (Index point = 0; point < points; ++point)
    for (Index p = first_panel; p < last_panel; ++p)
      with_panel(panels, p, [&](auto v) DEQ_INLINE {
        constexpr Index numbers = packed_numbers<S>(v.sums, v.paired);
        const Index channel = panels.first_channel(p);
        const S* const weights = packed + (channel * points + point * numbers) * depth;
        for_each_block<v.sums>(n, [&](auto r, Index tile) {
          Block<S, r, v.sums, v.paired> block;
          const S* rows[r];
          rows[0] = input.at(point, first + tile);
          for (int i = 1; i < r; ++i) rows[i] = rows[i - 1] + from_step;
          block.set_product(rows, weights, depth);
          S* const to = product.at(point, tile) + channel - panels.first_channel(first_panel);
          const auto& done = block.folded();
          unroll<r>([&](auto i) DEQ_INLINE {
            unroll<v>([&](auto j) DEQ_INLINE {
              store(to + i * to_step + j * simd_width<S>, done.sum[i][j]);
            });
          });
        });
      });
}

/// A^T m A of one tile and vector v of the panel, whose products begin at `place`; what lies
/// outside the image is dropped.
template <int M, class S, class Writer>
void transform_output(const Conv2dGeometry& g, const S* place, Index plane, int v, const Tile& tile,
                      Writer& writer) {
  constexpr int n = Winograd<M>::tile;
  Simd<S> y[M][M];
  on_both_sides<M, n>([&](int i, int j) DEQ_INLINE { return load(place + (i * n + j) * plane); },
                      [](const auto& a, auto& b) DEQ_INLINE { Winograd<M>::output(a, b); },
                      [&](int i, int j, const Simd<S>& value) DEQ_INLINE { y[i][j] = value; });
  const Index width = g.out_width(), first = tile.line * width + tile.column;
  const Index lines = std::min<Index>(M, g.out_height() - tile.line);
  const Index columns = std::min<Index>(M, width - tile.column);
  writer.write(v, [&](auto&& put) DEQ_INLINE {
    if (lines == M && columns == M)
      unroll<M * M>([&](auto i)
                        DEQ_INLINE { put(first + i / M * width + i % M, y[i / M][i % M]); });
    else
      for (Index i = 0; i < lines; ++i)
        for (Index j = 0; j < columns; ++j) put(first + i * width + j, y[i][j]);
  });
}

/// Fetches the cache lines that transform_output will write to.
template <int M, class S>
void prefetch_output(const Conv2dGeometry& g, const S* y, Index channels, const Tile& tile) {
  const Index lines = std::min<Index>(M, g.out_height() - tile.line);
  const Index columns = std::min<Index>(M, g.out_width() - tile.column);
  const S* line =
      y + (tile.sample * g.out_pixels() + tile.line * g.out_width() + tile.column) * g.out_channels;
  for (Index i = 0; i < lines; ++i, line += g.out_width() * g.out_channels)
    for (Index j = 0; j < columns; ++j)
      for (Index c = 0; c < channels; c += 64 / sizeof(S))
        __builtin_prefetch(line + j * g.out_channels + c, 1);
}

/// Tiles that are multiplied by a panel and transformed back at a time. Their products come from
/// the first or second-level cache; with fewer, the weights are read more often.
inline constexpr Index winograd_group = 16;

/// A group of tiles by one panel; or, where the weights are far, and the input is larger than the
/// output, everything at once, so that both are read a single time.
template <int M, class S>
ProductChunk product_chunk(const Conv2dGeometry& g, Index tiles, Index panels) {
  constexpr Index points = Winograd<M>::tile * Winograd<M>::tile;
  const bool near = weight_stays_near<S>(g.in_channels, g.out_channels, points);
  if (!near && g.in_channels > g.out_channels) return {tiles, panels};
  return {winograd_group, 1};
}

/// y = x * w, channels last, w packed by pack_winograd<M>.
template <int M, class S>
void convolve_winograd(const Conv2dGeometry& g, const S* x, const S* packed,
                       const Epilogue<S>& epilogue, S* y, const Pieces& pieces) {
  constexpr int points = Winograd<M>::tile * Winograd<M>::tile;
  const Tiles<M> tiles(g);
  const Panels<S> panels(g.out_channels, g.in_channels);
  const Array<Cpu<S>> zeros(g.in_channels);
  std::fill_n(zeros.data(), g.in_channels, S(0));
  const SharedPanels shared(pieces.count(), panels.count());
  parallel_for(shared.count(), [&](Index index) {
    const auto piece = pieces[shared.piece(index)];
    const Index first_panel = shared.first(index), last_panel = shared.last(index);
    const Index per_sample = piece.last - piece.first;
    const Index count = (piece.last_sample - piece.first_sample) * per_sample;
    Array<Cpu<S>, Tile> places(count);
    Tile* const place = places.data();
    for (Index i = 0; i < count; ++i)
      place[i] = tiles.at(piece.first_sample + i / per_sample, piece.first + i % per_sample);

    const TransformedTiles<S> input(points, count, g.in_channels);
    for (Index i = 0; i < count; ++i) {
      const Pixels<S> image(x + place[i].sample * g.in_pixels() * g.in_channels, g.height, g.width,
                            g.in_channels, zeros.data());
      transform_input<M>(image, place[i].line - g.padding, place[i].column - g.padding,
                         g.in_channels, input, i);
    }
    const ProductChunk chunk = product_chunk<M, S>(g, count, last_panel - first_panel);
    const TransformedTiles<S> product(points, chunk.tiles,
                                      chunk.panels * panels.width * simd_width<S>);
    with_epilogue(epilogue, g.out_channels, [&](auto fused, auto moments) {
      for (Index p = first_panel; p < last_panel; ++p) {
        const Index channel = panels.first_channel(p), in_chunk = (p - first_panel) % chunk.panels;
        const Index width = panels.width_of(p) * simd_width<S>;
        PanelWriter<S, fused, moments> writer(epilogue, g.out_pixels(), g.out_channels, channel,
                                              panels.width_of(p), y, piece.part);
        for (Index first = 0; first < count; first += chunk.tiles) {
          const Index n = std::min(chunk.tiles, count - first);
          if (in_chunk == 0)
            multiply_points(points, input, first, n, packed, panels, p,
                            std::min(p + chunk.panels, last_panel), product);
          for (Index i = 0; i < n; ++i) {
            writer.select(place[first + i].sample);
            if (first + i + 1 < count)
              prefetch_output<M>(g, y + channel, width, place[first + i + 1]);
            const S* const of_panel = product.at(0, i) + in_chunk * panels.width * simd_width<S>;
            for (int v = 0; v < panels.width_of(p); ++v)
              transform_output<M>(g, of_panel + v * simd_width<S>, product.plane, v,
                                  place[first + i], writer);
          }
        }
      }
    });
  });
}

}  // namespace deq::detail
