// SPDX-License-Identifier: MIT
// A convolution of channels-last images, or its transpose: one template over precision and tile.
// Floor: 2 samples pixels out_channels depth operations, and every image once through memory.
#pragma once

#include <deq/backend/cuda/conv/halo.cuh>
#include <deq/backend/cuda/conv/implicit_gemm.cuh>
#include <deq/backend/cuda/graph.cuh>
#include <deq/core/host_pool.hpp>

namespace deq::cuda {

/// body(integral constants of rows, columns) for the tile of a plan.
template <class Body>
void with_tile(const TilePlan& plan, Body&& body) {
  constexpr std::integral_constant<int, 128> high;
  constexpr std::integral_constant<int, 64> low, wide;
  if (plan.columns == 32)
    body(high, std::integral_constant<int, 32>{});
  else if (plan.rows == 64)
    body(low, wide);
  else
    body(high, wide);
}

/// The outputs of one phase, from its packed weight.
template <class A, class S, class X>
void convolve(const ConvPlan& plan, const X* x, const S* packed, ConvEpilogue<S, X> epilogue) {
  const ImageMap& map = plan.map;
  const Segments& segments = plan.segments;
  const PackedWeight& weight = plan.weight;
  const SumPlan& sum = plan.sum;
  const TilePlan& tiles = plan.tiles;
  epilogue.packed = in_packs<8>(map.out_channels, epilogue.u, epilogue.parts.addend,
                                epilogue.parts.bias, epilogue.parts.mask);
  epilogue.plain = !epilogue.parts.bias && !epilogue.parts.mask && !epilogue.parts.addend;
  const auto by_tiles = [&](auto rows, auto columns) {
    using T = Tile<A, rows, columns>;
    const auto* const words = reinterpret_cast<const typename T::Word*>(packed);
    const RowSet samples = RowSet::of(map.samples);
    Grid grid{.x = tiles.row_tiles, .y = tiles.column_tiles, .shared_bytes = T::shared_bytes};
    const auto by_width = [&](auto width) {
      if constexpr (columns != TilePlan::wide)
        if (!weight.halo)
          return launch(grid, implicit_gemm_kernel<T, width, X>, map, segments, samples, x, words,
                        weight.depth, epilogue);
      const Halo halo(map, rows);
      const Index tiles_a_block = sum.parts > 1 ? 1 : tiles.tiles_a_block(processors());
      grid.y = divide_up(tiles.column_tiles, tiles_a_block);
      grid.z = sum.parts;
      const Scratch<S> parts(sum.parts > 1 ? sum.parts * grid.x * grid.y * part_size<T>() : 0);
      const auto with_taps = [&](auto taps) {
        grid.shared_bytes = halo_bytes<T, taps>(halo, weight.slices());
        const auto start = [&](auto in_place) {
          launch(grid, halo_kernel<T, width, taps, in_place, X>, map, segments, halo, samples, x,
                 words, weight.slices(), static_cast<int>(sum.terms_a_part), weight.words_of_tile(),
                 static_cast<int>(tiles.column_tiles), static_cast<int>(tiles_a_block),
                 parts.data(), epilogue);
          if (parts.data())
            launch({.x = grid.x, .y = grid.y}, add_parts_kernel<T, X>, map, segments, samples,
                   parts.data(), static_cast<int>(sum.parts), epilogue);
        };
        if constexpr (A::tensor_cores && width > 1)
          if (map.in_squares) return start(std::true_type{});
        start(std::false_type{});
      };
      // Three stages of doubles would not find room on all devices.
      if constexpr (width > 1 && sizeof(S) <= 4)
        if (map.x.taps == 3) return with_taps(std::integral_constant<int, 3>{});
      with_taps(std::integral_constant<int, 1>{});
    };
    with_packs(map.channels, by_width, x);
  };
  if constexpr (PackedWeight::may_be_wide(A::numbers))
    if (tiles.columns == TilePlan::wide)
      return by_tiles(std::integral_constant<int, 128>{},
                      std::integral_constant<int, TilePlan::wide>{});
  with_tile(tiles, by_tiles);
}
/// The convolution, or its transpose, of all of x with a packed weight. Phases do not wait for each
/// other where that can be said, in a graph, unless they need memory for parts of sums.
template <class A, class S, class X>
void convolve(const Conv2dGeometry& g, bool transposed, const X* x, const S* packed,
              const ConvEpilogue<S, X>& epilogue) {
  const int phases = ImageMap::phases(g, transposed);
  const Index of_device = processors();
  PoolVector<ConvPlan> plans;
  PoolVector<const S*> weights;
  bool in_parts = false;
  for (int phase = 0; phase < phases; ++phase) {
    const ConvPlan& plan = plans.emplace_back(g, transposed, phase, A::numbers, of_device);
    weights.push_back(packed);
    packed += plan.weight.words();
    in_parts |= plan.sum.parts > 1;
  }
  const auto one = [&](Index phase) {
    const auto k = static_cast<std::size_t>(phase);
    convolve<A, S, X>(plans[k], x, weights[k], epilogue);
  };
  Graph* const graph = Graph::recording();
  if (graph && phases > 1 && !in_parts) return graph->at_once(phases, one);
  for (int phase = 0; phase < phases; ++phase) one(phase);
}

/// Packs a weight (O, C, kh, kw) for the convolution, or for its transpose.
template <class A, class S>
void pack_weight(const Conv2dGeometry& g, bool transposed, const S* w, S* packed) {
  const Index in_channels = g.in_channels, kernel_width = g.kernel_width, taps = g.kernel_size();
  for (int phase = 0; phase < ImageMap::phases(g, transposed); ++phase) {
    const ImageMap map(g, transposed, phase);
    const PackedWeight weight(map, A::numbers);
    const int map_taps = map.y.taps * map.x.taps, channels = static_cast<int>(weight.channels);
    auto* const words = reinterpret_cast<typename A::Word*>(packed);
    for_each_index(weight.words(), [=] __device__(Index i) {
      const PackedWeight::Place at = weight.place(static_cast<int>(i), map_taps);
      S x[A::numbers];
      for (int d = 0; d < A::numbers; ++d) {
        // Where channels are not padded, a word may have channels of two taps.
        int tap = at.tap, c = at.channel + d;
        if (c >= channels) {
          ++tap;
          c -= channels;
        }
        if (tap >= map_taps || c >= map.channels || at.output >= map.out_channels) {
          x[d] = 0;
          continue;
        }
        const int y = tap / map.x.taps * map.y.tap_step + map.y.tap_first,
                  column = tap % map.x.taps * map.x.tap_step + map.x.tap_first;
        x[d] =
            w[((transposed ? c : at.output) * in_channels + (transposed ? at.output : c)) * taps +
              y * kernel_width + column];
      }
      words[i] = A::word(x);
    });
    packed += weight.words();
  }
}

}  // namespace deq::cuda
