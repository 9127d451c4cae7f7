// SPDX-License-Identifier: MIT
// A convolution that gathers the patch of every pixel: for few channels, and for images of which a
// halo has no room.
#pragma once

#include <deq/backend/cuda/conv/epilogue.cuh>
#include <deq/backend/cuda/conv/operands.cuh>

namespace deq::cuda {

/// A tile of u = patches(x) W (blockIdx.x: of pixels, blockIdx.y: of outputs), by its epilogue; the
/// channels come in packs of `width`. Cost: every tap reads its pixels again.
template <class T, int width, class X>
__global__ void __launch_bounds__(threads)
    implicit_gemm_kernel(ImageMap map, Segments segments, RowSet samples, const X* x,
                         const typename T::Word* packed, Index packed_depth,
                         ConvEpilogue<typename T::S, X> epilogue) {
  const Index first_row = static_cast<Index>(blockIdx.x) * T::rows;
  const int first_column = static_cast<int>(blockIdx.y) * T::columns;
  if (nobody(map, segments, samples, first_row, T::rows)) return;
  typename T::Word* const shared = dynamic_shared<typename T::Word>();
  Patches<T, X, width> a(map, segments, samples, x, first_row);
  Weights<T> b(packed, packed_depth / T::Arithmetic::numbers, first_column);
  T product;
  product.multiply(a, b, (map.depth() + T::stage - 1) / T::stage, shared);
  write_tile<T>(map, segments, samples, first_row, first_column, epilogue, product);
}

}  // namespace deq::cuda
