// SPDX-License-Identifier: MIT
// Tiles whose sums are cut into parts: several blocks have a part each, and leave their sums in
// memory as they have them in registers; others add them up, part after part, and write the tile.
#pragma once

#include <deq/backend/cuda/conv/epilogue.cuh>
#include <deq/backend/cuda/conv/warpgroup.cuh>

namespace deq::cuda {

template <class T>
DEQ_HOST_DEVICE constexpr Index numbers_of_tile() {
  return Index{T::rows} * T::columns;
}
/// Of four number i of this thread: those of all threads of a block are beside each other.
template <class S>
__device__ Index place_of_four(int i) {
  return 4 * (static_cast<Index>(i) * threads + threadIdx.x);
}

template <class S, class Product>
__device__ void put_part(Product& product, S* part) {
  product.for_each_four([part](const S(&sums)[4], int i) {
    store_pack(part + place_of_four<S>(i), Quad<S>{sums[0], sums[1], sums[2], sums[3]});
  });
}

/// Of `count` parts; those of one part of all tiles follow each other.
template <class T, class X>
__global__ void __launch_bounds__(threads)
    add_tile_parts_kernel(ImageMap map, Segments segments, RowSet samples,
                          const typename T::S* parts, int count,
                          ConvEpilogue<typename T::S, X> epilogue) {
  using S = typename T::S;
  const Index first_row = static_cast<Index>(blockIdx.x) * T::rows;
  if (nobody(map, segments, samples, first_row, T::rows)) return;
  const Index tile = static_cast<Index>(blockIdx.y) * gridDim.x + blockIdx.x,
              tiles = static_cast<Index>(gridDim.x) * gridDim.y;
  TileProduct<T, false> product;  // its numbers are where those of the others are
  for (int p = 0; p < count; ++p) {
    const S* const part = parts + (p * tiles + tile) * numbers_of_tile<T>();
    product.for_each_four([part](S(&sums)[4], int i) {
      const Quad<S> more = load_pack<4>(part + place_of_four<S>(i));
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[k] += more.word[k];
    });
  }
  write_tile<T>(map, segments, samples, first_row, static_cast<int>(blockIdx.y) * T::columns,
                epilogue, product);
}

}  // namespace deq::cuda
