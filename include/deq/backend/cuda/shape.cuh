// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/cuda/pointwise.cuh>
#include <deq/backend/geometry.hpp>

namespace deq {

namespace cuda {

/// Rows and columns of the square that a block transposes.
inline constexpr int transposed_side = 32;

/// Matrices, one a sample.
struct TransposeGeometry {
  Index samples, rows, columns;

  DEQ_HOST_DEVICE Index row_tiles() const { return divide_up<Index>(rows, transposed_side); }
  DEQ_HOST_DEVICE Index column_tiles() const { return divide_up<Index>(columns, transposed_side); }
};

/// Through shared memory, so that both sides of it are read and written along their rows.
template <class S>
__global__ void __launch_bounds__(threads)
    transpose_kernel(TransposeGeometry g, RowSet samples, const S* x, S* y, bool accumulate) {
  __shared__ S square[transposed_side][transposed_side + 1];  // the columns in different banks
  const Index block = blockIdx.x, row_block = block / g.column_tiles();
  const Index column = block % g.column_tiles() * transposed_side,
              row = row_block % g.row_tiles() * transposed_side;
  const Index sample = row_block / g.row_tiles();
  if (!samples.contains(sample)) return;
  const int lane = static_cast<int>(threadIdx.x) % transposed_side,
            first = static_cast<int>(threadIdx.x) / transposed_side;
  constexpr int step = threads / transposed_side;

  x += sample * g.rows * g.columns + row * g.columns + column;
#pragma unroll
  for (int k = first; k < transposed_side; k += step)
    if (row + k < g.rows && column + lane < g.columns) square[k][lane] = x[k * g.columns + lane];
  __syncthreads();
  y += sample * g.rows * g.columns + column * g.rows + row;
#pragma unroll
  for (int k = first; k < transposed_side; k += step)
    if (column + k < g.columns && row + lane < g.rows)
      put(y[k * g.rows + lane], square[lane][k], accumulate);
}
template <class S>
void transpose(const TransposeGeometry& g, RowSet samples, const S* x, S* y, bool accumulate) {
  launch({.x = g.samples * g.row_tiles() * g.column_tiles()}, transpose_kernel<S>, g, samples, x, y,
         accumulate);
}

/// Packs of n numbers that a thread moves at once: all are read before one is written, see
/// chunk.cuh.
inline constexpr int strip_packs = 4;

/// A block for a part of a strip.
template <int n, class S, class From, class To>
__global__ void __launch_bounds__(threads)
    copy_strips_kernel(StripGeometry g, const From* from, To* to, bool accumulate) {
  from += blockIdx.x * g.from_stride;
  to += blockIdx.x * g.to_stride;
  const Index step = static_cast<Index>(gridDim.y) * threads * n;
  for (Index first = (static_cast<Index>(blockIdx.y) * threads + threadIdx.x) * n; first < g.length;
       first += strip_packs * step) {
    Pack<S, n> x[strip_packs];
#pragma unroll
    for (int k = 0; k < strip_packs; ++k)
      if (const Index i = first + k * step; i < g.length) {
        x[k] = load_as<S, n>(from + i);
        if (accumulate) add_to(x[k], load_as<S, n>(to + i));
      }
#pragma unroll
    for (int k = 0; k < strip_packs; ++k)
      if (const Index i = first + k * step; i < g.length) store_pack(to + i, as<To>(x[k]));
  }
}
}  // namespace cuda

/// to_i (+)= from_i for every strip i. Either may be stored otherwise than as S.
template <class S, class From, class To>
void copy_strips(Cuda<S>, const StripGeometry& g, const From* from, To* to, bool accumulate) {
  const auto copy = [&](auto packs) {
    constexpr Index most = 1 << 10;
    const Index blocks =
        cuda::divide_up<Index>(g.length, packs * cuda::strip_packs * cuda::threads);
    cuda::launch({.x = g.count, .y = std::min(blocks, most)},
                 cuda::copy_strips_kernel<packs, S, From, To>, g, from, to, accumulate);
  };
  constexpr int best = cuda::best_pack<From, To>;
  const bool strides = g.from_stride % best == 0 && g.to_stride % best == 0;
  cuda::with_packs(strides ? g.length : Index{1}, copy, from, to);
}

/// y (cols x rows) (+)= x^T, x (rows x cols).
template <class S>
void transpose_matrix(Cuda<S>, Index rows, Index cols, const S* x, S* y, bool accumulate) {
  cuda::transpose({1, rows, cols}, cuda::RowSet{}, x, y, accumulate);
}

/// The transposes of matrices, rows x columns, one a sample.
template <class S>
void nhwc_transpose(Cuda<S>, Index samples, Index rows, Index columns, const S* x, S* y,
                    bool accumulate) {
  cuda::transpose({samples, rows, columns}, cuda::RowSet::of(samples), x, y, accumulate);
}

}  // namespace deq
