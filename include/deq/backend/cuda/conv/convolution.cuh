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
template <bool may_be_wide = false, class Body>
void with_tile(const TilePlan& plan, Body&& body) {
  constexpr std::integral_constant<int, 128> high;
  constexpr std::integral_constant<int, 64> low, standard;
  if constexpr (may_be_wide)
    if (plan.columns == TilePlan::wide)
      return body(high, std::integral_constant<int, TilePlan::wide>{});
  if (plan.columns == 32)
    body(high, std::integral_constant<int, 32>{});
  else if (plan.rows == 64)
    body(low, standard);
  else
    body(high, standard);
}

/// The outputs of one phase, by tiles T of patches that are gathered; the channels come in packs of
/// `width`.
template <class T, int width, class X>
void convolve_gathered(const ConvPlan& plan, const X* x, const typename T::Word* packed,
                       const ConvEpilogue<typename T::S, X>& epilogue) {
  launch({.x = plan.tiles.row_tiles, .y = plan.tiles.column_tiles, .shared_bytes = T::shared_bytes},
         implicit_gemm_kernel<T, width, X>, plan.map, plan.segments, RowSet::of(plan.map.samples),
         x, packed, plan.weight.depth, epilogue);
}
/// The same by tiles that keep a halo, `taps` taps between two barriers.
template <class T, int width, int taps, bool in_place, class X>
void convolve_halos(const ConvPlan& plan, const X* x, const typename T::Word* packed,
                    const ConvEpilogue<typename T::S, X>& epilogue) {
  using S = typename T::S;
  const ImageMap& map = plan.map;
  const RowSet samples = RowSet::of(map.samples);
  const Halo halo(map, T::rows);
  const Index count = plan.sum.parts,
              tiles_a_block = count > 1 ? 1 : plan.tiles.tiles_a_block(processors());
  const Grid grid{.x = plan.tiles.row_tiles,
                  .y = divide_up(plan.tiles.column_tiles, tiles_a_block),
                  .z = count,
                  .shared_bytes = halo_bytes<T, taps>(halo, plan.weight.slices())};
  const Scratch<S> parts(count > 1 ? count * grid.x * grid.y * numbers_of_tile<T>() : 0);
  launch(grid, halo_kernel<T, width, taps, in_place, X>, map, plan.segments, halo, samples, x,
         packed, plan.weight.slices(), static_cast<int>(plan.sum.terms_a_part),
         plan.weight.words_of_tile(), static_cast<int>(plan.tiles.column_tiles),
         static_cast<int>(tiles_a_block), parts.data(), epilogue);
  if (count > 1)
    launch({.x = grid.x, .y = grid.y}, add_tile_parts_kernel<T, X>, map, plan.segments, samples,
           parts.data(), static_cast<int>(count), epilogue);
}

/// The outputs of one phase, from its packed weight.
template <class A, class S, class X>
void convolve(const ConvPlan& plan, const X* x, const S* packed, ConvEpilogue<S, X> epilogue) {
  const ImageMap& map = plan.map;
  epilogue.packed = in_packs<8>(map.out_channels, epilogue.u, epilogue.parts.addend,
                                epilogue.parts.bias, epilogue.parts.mask);
  epilogue.plain = !epilogue.parts.bias && !epilogue.parts.mask && !epilogue.parts.addend;
  const auto* const words = reinterpret_cast<const typename A::Word*>(packed);
  const auto by_tiles = [&](auto rows, auto columns) {
    using T = Tile<A, rows, columns>;
    const auto by_width = [&](auto width) {
      if constexpr (columns != TilePlan::wide)
        if (!plan.weight.halo) return convolve_gathered<T, width>(plan, x, words, epilogue);
      const auto with_taps = [&](auto taps) {
        if constexpr (A::tensor_cores && width > 1)
          if (map.in_squares) return convolve_halos<T, width, taps, true>(plan, x, words, epilogue);
        convolve_halos<T, width, taps, false>(plan, x, words, epilogue);
      };
      // Three stages of doubles would not find room on all devices.
      if constexpr (width > 1 && sizeof(S) <= 4)
        if (map.x.taps == 3) return with_taps(std::integral_constant<int, 3>{});
      with_taps(std::integral_constant<int, 1>{});
    };
    with_packs(map.channels, by_width, x);
  };
  with_tile<PackedWeight::may_be_wide(A::numbers)>(plan.tiles, by_tiles);
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
