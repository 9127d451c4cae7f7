// SPDX-License-Identifier: MIT
// Sums. The order of the terms is fixed by the extents alone, and by whether columns begin where
// packs may, as those of all tensors from the pool do, so that a result has the same bits in every
// run.
#pragma once

#include <deq/backend/array.hpp>
#include <deq/backend/cuda/launch.cuh>
#include <deq/backend/cuda/memory.cuh>

namespace deq::cuda {

/// The sum over a warp, in every thread of it.
template <class S>
__device__ S warp_sum(S v) {
#pragma unroll
  for (int distance = warp_threads / 2; distance > 0; distance /= 2)
    v += __shfl_xor_sync(0xffffffffu, v, distance);
  return v;
}

/// The sums of K numbers over a block of `threads`, in thread 0.
template <int K, class S>
__device__ void block_sum(S (&v)[K]) {
  constexpr int warps = threads / warp_threads;
  __shared__ S of_warp[K][warps];
  const int warp = static_cast<int>(threadIdx.x) / warp_threads,
            lane = static_cast<int>(threadIdx.x) % warp_threads;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    v[k] = warp_sum(v[k]);
    if (lane == 0) of_warp[k][warp] = v[k];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      v[k] = 0;
      for (int w = 0; w < warps; ++w) v[k] += of_warp[k][w];
    }
  }
  __syncthreads();  // the next sum may begin
}

/// put(i, sum of term(r, i), r < rows) for i < columns. Neighbours of i are neighbours in memory,
/// so a warp has 32 of them, and the warps of a block share the rows.
template <class S, class Term, class Put>
__global__ void __launch_bounds__(threads)
    add_rows_kernel(Index rows, Index columns, Term term, Put put) {
  constexpr int warps = threads / warp_threads;
  __shared__ S of_warp[warps][warp_threads];
  const int warp = static_cast<int>(threadIdx.x) / warp_threads,
            lane = static_cast<int>(threadIdx.x) % warp_threads;
  const Index i = static_cast<Index>(blockIdx.x) * warp_threads + lane;
  S sum = 0;
  if (i < columns)
    for (Index r = warp; r < rows; r += warps) sum += term(r, i);
  of_warp[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || i >= columns) return;
  for (int w = 1; w < warps; ++w) sum += of_warp[w][lane];
  put(i, sum);
}
/// In one round.
template <class S, class Term, class Put>
void add_rows_at_once(Index rows, Index columns, Term term, Put put) {
  if (rows >= threads / warp_threads)
    return launch({.x = divide_up<Index>(columns, warp_threads)}, add_rows_kernel<S, Term, Put>,
                  rows, columns, term, put);
  for_each_index(columns, [=] __device__(Index i) {  // not worth sharing
    S sum = 0;
    for (Index r = 0; r < rows; ++r) sum += term(r, i);
    put(i, sum);
  });
}

/// Memory for the length of a few launches: what comes after them in the stream may have it next.
template <class T>
using Scratch = Array<PooledMemory, T>;

/// The same for any number of rows: of many, parts of them first.
template <class S, class Term, class Put>
void add_rows(Index rows, Index columns, Term term, Put put) {
  constexpr Index most = 1024;  // rows of a block
  if (rows <= most) return add_rows_at_once<S>(rows, columns, term, put);
  const Index parts = divide_up(rows, most / 2), a_part = divide_up(rows, parts);
  const Scratch<S> scratch(parts * columns);
  S* const sums = scratch.data();
  add_rows_at_once<S>(
      a_part, parts * columns,
      [=] __device__(Index r, Index i) {
        const Index row = i / columns * a_part + r;
        return row < rows ? term(row, i % columns) : S(0);
      },
      [=] __device__(Index i, S sum) { sums[i] = sum; });
  add_rows_at_once<S>(
      parts, columns, [=] __device__(Index r, Index i) { return sums[r * columns + i]; }, put);
}

}  // namespace deq::cuda
