// SPDX-License-Identifier: MIT
// Sums. The order of the terms is fixed by the extents alone, so that a result has the same bits
// in every run.
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

// --- Sums over the numbers of each sample ------------------------------------------------------
// A sample is many chunks. Each writes its part of `width` sums to a row of its own; a second,
// small kernel adds them up.

template <class S, class Wanted, class Put>
__global__ void add_chunks_kernel(Samples a, Index chunks, Index width, const S* part,
                                  Wanted wanted, Put put) {
  const Index index = thread_index(), j = index / width, k = index % width;
  if (j >= a.count || a[j] < 0 || !wanted(a[j], k)) return;
  const S* row = part + j * chunks * width + k;
  S sum = 0;
  for (Index c = 0; c < chunks; ++c) sum += row[c * width];
  put(a[j], k, sum);
}
/// put(sample, k, sum) for those k < width that are wanted(sample, k): of others nobody need have
/// written the parts.
template <class S, class Wanted, class Put>
void add_chunks(Samples a, Index dim, Index width, const S* part, Wanted wanted, Put put) {
  launch({.x = divide_up<Index>(a.count * width, threads)}, add_chunks_kernel<S, Wanted, Put>, a,
         divide_up(dim, chunk), width, part, wanted, put);
}
template <class S, class Put>
void add_chunks(Samples a, Index dim, Index width, const S* part, Put put) {
  add_chunks(
      a, dim, width, part, [] __device__(Index, Index) { return true; }, put);
}
/// The row of this block.
template <class S>
__device__ S* part_of_block(S* part, Index width) {
  return part + (static_cast<Index>(blockIdx.x) * gridDim.y + blockIdx.y) * width;
}

template <int K, class S, class Term>
__global__ void __launch_bounds__(threads)
    sample_sums_kernel(Samples a, Index dim, Term term, S* part) {
  const Index j = blockIdx.x, s = a[j];
  if (s < 0) return;
  S sum[K] = {};
  for_each_in_chunk(dim, [&](Index i, int) { term(s, j, i, sum); });
  block_sum(sum);
  if (threadIdx.x == 0)
    for (int k = 0; k < K; ++k) part_of_block(part, K)[k] = sum[k];
}
/// term(sample, position, i, sum) adds number i to the K sums of its sample; put(sample, k, sum)
/// takes them.
template <int K, class S, class Term, class Put>
void sample_sums(Samples a, Index dim, Term term, Put put) {
  const Scratch<S> part(a.count * divide_up(dim, chunk) * K);
  launch(chunks_of(a, dim), sample_sums_kernel<K, S, Term>, a, dim, term, part.data());
  add_chunks<S>(a, dim, K, part.data(), put);
}

}  // namespace deq::cuda
