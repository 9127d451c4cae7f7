// SPDX-License-Identifier: MIT
// The weight gradient of a convolution: patches transposed times cotangents, a sum over the pixels
// of all samples, which are far more than the gradient has numbers. So the sum is cut into parts
// for many blocks, and the parts are added up in one order.
#pragma once

#include <deq/backend/cuda/conv/convolution.cuh>
#include <deq/backend/cuda/conv/halo_gradient.cuh>
#include <deq/backend/cuda/pointwise.cuh>

namespace deq::cuda {

/// c, rows x columns, (+)= a tile of a product.
template <class T>
__device__ void write_product(Index rows, Index columns, Index first_row, Index first_column,
                              const typename T::S* sums, typename T::S* c, bool accumulate) {
  for (int i = static_cast<int>(threadIdx.x); i < T::rows * T::columns; i += threads) {
    const Index row = first_row + i / T::columns, column = first_column + i % T::columns;
    if (row >= rows || column >= columns) continue;
    put(c[row * columns + column], sums[i / T::columns * T::sum_line + i % T::columns], accumulate);
  }
}

template <class T, int width, int width_of_dy, class X>
__global__ void __launch_bounds__(threads)
    weight_gradient_kernel(ImageMap map, const X* x, MatrixView<X> dy, Index terms,
                           Index terms_a_part, typename T::S* parts) {
  const Index first_row = static_cast<Index>(blockIdx.x) * T::rows,
              first_column = static_cast<Index>(blockIdx.y) * T::columns;
  const Index first = blockIdx.z * terms_a_part,
              last = first + terms_a_part < terms ? first + terms_a_part : terms;
  typename T::Word* const shared = dynamic_shared<typename T::Word>();
  PatchesTransposed<T, X, width> a(map, x, first_row, first, last);
  MatrixColumns<T, X, width_of_dy> b(dy, first_column, first, last);
  T product;
  product.multiply(a, b, static_cast<int>((last - first + T::stage - 1) / T::stage), shared);
  auto* const sums = reinterpret_cast<typename T::S*>(shared);
  product.spread(sums);
  const Index columns = dy.extent;
  write_product<T>(map.depth(), columns, first_row, first_column, sums,
                   parts + blockIdx.z * map.depth() * columns, false);
}

/// put_total(i, the sum of number i) of `count` parts of `size` numbers each.
template <class S, class Put>
void sum_parts(Index count, Index size, const S* parts, Put put_total) {
  add_rows<S>(
      count, size, [=] __device__(Index p, Index i) { return parts[p * size + i]; }, put_total);
}

/// dw (+)= patches^T dy, depth x out_channels, in parts whose sums are put where they belong in dw.
template <class A, class S, class X>
void gather_gradient(const ImageMap& map, const X* x, const X* dy, S* dw, bool accumulate) {
  const Index depth = map.depth(), terms = static_cast<Index>(map.samples) * map.pixels();
  const int columns = map.out_channels, channels = map.channels, taps = map.y.taps * map.x.taps;
  const TilePlan plan(depth, columns, 0);  // high tiles: the parts keep the processors busy
  constexpr Index least = 512;             // terms: fewer are not worth a part of their own
  const SumPlan sum =
      SumPlan::of_tiles(terms, plan.row_tiles * plan.column_tiles, processors(), least);
  const Index size = depth * columns;
  const Scratch<S> parts(sum.parts * size);
  with_tile(plan, [&](auto rows, auto tile_columns) {
    using T = Tile<A, rows, tile_columns>;
    const auto start = [&](auto width, auto width_of_dy) {
      launch({.x = plan.row_tiles,
              .y = plan.column_tiles,
              .z = sum.parts,
              .shared_bytes = T::shared_bytes},
             weight_gradient_kernel<T, width, width_of_dy, X>, map, x,
             MatrixView<X>{dy, columns, 1, columns}, terms, sum.terms_a_part, parts.data());
    };
    const auto by_width = [&](auto width) {
      with_packs_of<4>(
          columns, [&](auto of_dy) { start(width, of_dy); }, dy);
    };
    with_packs_of<4>(channels, by_width, x);
  });
  const Divisor by_columns(columns), by_channels(channels);
  sum_parts(sum.parts, size, parts.data(), [=] __device__(Index i, S total) {
    const int k = by_columns.quotient(static_cast<int>(i)), o = static_cast<int>(i) - k * columns,
              tap = by_channels.quotient(k), c = k - tap * channels;
    put(dw[(static_cast<Index>(o) * channels + c) * taps + tap], total, accumulate);
  });
}

/// The same from halos of tiles of so many rows; each part is as dw.
template <class A, int rows, int side, class S>
void halo_gradient(const ImageMap& map, const Bfloat16* x, const Bfloat16* dy, S* dw,
                   bool accumulate) {
  using T = Tile<A, rows, 64>;
  const Segments segments(map.pixels());
  const Halo halo(map, rows);
  const Index row_tiles = divide_up<Index>(segments.rows_of(map.samples), rows),
              slices = divide_up<Index>(map.channels, T::stage),
              column_tiles = divide_up<Index>(map.out_channels, T::columns);
  const SumPlan sum = SumPlan::of_tiles(row_tiles, slices * column_tiles, processors(), 1);
  const Index size = static_cast<Index>(map.depth()) * map.out_channels;
  const Scratch<S> parts(sum.parts * size);
  const auto start = [&](auto pairs) {
    launch({.x = slices,
            .y = column_tiles,
            .z = sum.parts,
            .shared_bytes = gradient_bytes<T, side>(halo)},
           halo_gradient_kernel<T, side, pairs>, map, segments, halo, x, dy,
           static_cast<int>(row_tiles), static_cast<int>(sum.terms_a_part), parts.data());
  };
  if constexpr (side == 3 && rows == 128) {
    if (PairedImages::are(map))
      start(std::true_type{});
    else
      start(std::false_type{});
  } else {
    start(std::false_type{});
  }
  sum_parts(sum.parts, size, parts.data(),
            [=] __device__(Index i, S total) { put(dw[i], total, accumulate); });
}

/// dw (O, C, kh, kw) (+)= the sum over all samples.
template <class A, class S, class X>
void weight_gradient(const Conv2dGeometry& g, const X* x, const X* dy, S* dw, bool accumulate) {
  const ImageMap map(g, false);
  if constexpr (std::is_same_v<X, Bfloat16>)
    if (map.y.taps == map.x.taps && (map.x.taps == 1 || map.x.taps == 3) &&
        in_packs<best_pack<X>>(map.channels, x) && in_packs<best_pack<X>>(map.out_channels, dy)) {
      const bool dot = map.x.taps == 1;
      switch (Halo::rows(map)) {
        case 128:
          return dot ? halo_gradient<A, 128, 1>(map, x, dy, dw, accumulate)
                     : halo_gradient<A, 128, 3>(map, x, dy, dw, accumulate);
        case 64:
          return dot ? halo_gradient<A, 64, 1>(map, x, dy, dw, accumulate)
                     : halo_gradient<A, 64, 3>(map, x, dy, dw, accumulate);
        default: break;
      }
    }
  gather_gradient<A>(map, x, dy, dw, accumulate);
}

}  // namespace deq::cuda
