// SPDX-License-Identifier: MIT
// The two passes over a basis that a limited-memory method consists of. A block holds a chunk of
// the one vector in registers while the chunks of the basis stream by: every stored number is read
// once a pass.
#pragma once

#include <deq/backend/cuda/chunk.cuh>
#include <deq/backend/cuda/reduce.cuh>

namespace deq::cuda {

/// use(v, chunk of vector v as it is stored) for the first vectors of sample s, several on their
/// way at a time where they are stored in fewer bytes than S has.
template <class S, int n, class T, class Use>
__device__ void for_each_vector(BasisView<const T> h, Index s, Index vectors, Use&& use) {
  constexpr int at_once = sizeof(S) / sizeof(T);
  for (Index v = 0; v < vectors; v += at_once) {
    Chunk<T, n> stored[at_once];
#pragma unroll
    for (int k = 0; k < at_once; ++k)
      if (v + k < vectors) stored[k] = load_chunk<n>(h.vec(s, v + k), h.dim);
#pragma unroll
    for (int k = 0; k < at_once; ++k)
      if (v + k < vectors) use(v + k, stored[k]);
  }
}

// --- Sums over the numbers of each sample -------------------------------------------------------
// Each chunk writes its part of `width` sums to a row of its own; a second, small kernel adds them
// up.

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
/// The row of this block.
template <class S>
__device__ S* part_of_block(S* part, Index width) {
  return part + (static_cast<Index>(blockIdx.x) * gridDim.y + blockIdx.y) * width;
}

// --- Products with the basis --------------------------------------------------------------------

/// Sums that stand before the products with the basis in a row of parts: squared norms.
inline constexpr int norms = 2;

/// The vectors of a basis that a sample has: all, if there are no ranks.
template <class T>
__device__ Index vectors_of(BasisView<const T> h, const Index* rank, Index s) {
  return rank ? rank[s] : h.capacity;
}

template <class S, int n, class T, class Op, class To, class... From>
__global__ void __launch_bounds__(threads)
    project_kernel(Samples a, BasisView<const T> h, const Index* rank, S* part, Op op, To to,
                   From... from) {
  const Index j = blockIdx.x, s = a[j];
  if (s < 0) return;
  constexpr int warps = threads / warp_threads;
  const Index width = norms + h.capacity;
  S* const of_warp = dynamic_shared<S>();  // warps x width
  const Index warp = threadIdx.x / warp_threads;
  const bool first_lane = threadIdx.x % warp_threads == 0;
  const auto note = [&](Index k, S v) {
    v = warp_sum(v);
    if (first_lane) of_warp[warp * width + k] = v;
  };

  S norm[norms] = {};
  const auto x = map_chunk<S>([&](auto... number) { return op(norm, number...); },
                              load_chunk<n>(from.column(s, j), h.dim)...);
  for (int k = 0; k < norms; ++k) note(k, norm[k]);
  const Index vectors = vectors_of(h, rank, s);
  for_each_vector<S, n>(h, s, vectors, [&](Index v, const Chunk<T, n>& vector) {
    S sum = 0;
    for_each_number([&](S number, S with) { sum += number * with; }, as<S>(vector), x);
    note(norms + v, sum);
  });
  store_chunk(to.column(s, j), h.dim, x);
  __syncthreads();
  S* const row = part_of_block(part, width);
  for (Index k = threadIdx.x; k < norms + vectors; k += threads) {
    S sum = 0;
    for (int w = 0; w < warps; ++w) sum += of_warp[w * width + k];
    row[k] = sum;
  }
}
/// out_s,i = h_s,i . x_s for i < rank_s (or all, if there are no ranks), x = op(norm, from...)
/// number by number, which may add to two more sums; put(sample, k, sum) takes those. `to` keeps x.
template <class S, class T, class Op, class Put, class To, class... From>
void project(Samples a, BasisView<const T> h, const Index* rank, S* out, Put put, Op op, To to,
             From... from) {
  const Index width = norms + h.capacity;
  const Scratch<S> part(a.count * divide_up(h.dim, chunk) * width);
  Grid grid = chunks_of(a, h.dim);
  grid.shared_bytes = static_cast<std::size_t>(threads / warp_threads * width) * sizeof(S);
  with_packs_of<chunk_pack>(
      h.dim,
      [&](auto n) {
        launch(grid, project_kernel<S, n, T, Op, To, From...>, a, h, rank, part.data(), op, to,
               from...);
      },
      h.data, to.data(), from.data()...);
  add_chunks<S>(
      a, h.dim, width, part.data(),
      [=] __device__(Index s, Index k) { return k - norms < vectors_of(h, rank, s); },
      [=] __device__(Index s, Index k, S sum) {
        if (k < norms)
          put(s, k, sum);
        else
          out[s * h.capacity + k - norms] = sum;
      });
}

// --- Combinations of the basis ------------------------------------------------------------------

template <class S, int n, class T, class Alpha, class To>
__global__ void __launch_bounds__(threads)
    combine_kernel(Samples a, BasisView<const T> h, const Index* rank, const S* coefficient,
                   Alpha alpha, BatchView<const S> x, To to, BatchView<S> moved, S* part) {
  using Stored = typename To::Number;
  const Index j = blockIdx.x, s = a[j];
  if (s < 0) return;
  const S* c = coefficient + s * h.capacity;
  Chunk<S, n> y =
      map_chunk<S>([&](S number) { return alpha(s, number); }, load_chunk<n>(x.col(s), h.dim));
  for_each_vector<S, n>(h, s, rank[s], [&](Index v, const Chunk<T, n>& vector) {
    for_each_number([cv = c[v]](S& sum, S number) { sum += cv * number; }, y, as<S>(vector));
  });
  const Chunk<Stored, n> stored = as<Stored>(y);
  y = as<S>(stored);  // the vector is what is stored of it
  S squared[1] = {};
  for_each_number([&](S number) { squared[0] += number * number; }, y);
  if (moved.data) {
    for_each_number([](S& number, S before) { number += before; }, y,
                    load_chunk<n>(moved.col(s), h.dim));
    store_chunk(moved.col(s), h.dim, y);
  }
  store_chunk(to.column(s, j), h.dim, stored);
  if (!part) return;
  block_sum(squared);
  if (threadIdx.x == 0) *part_of_block(part, 1) = squared[0];
}
/// y_s = alpha(s, x_s) + sum_v c_s,v h_s,v, v < rank_s, which `to` keeps; moved_s += y_s unless
/// that is empty, squared_s = ||y_s||^2 unless that is null.
template <class S, class T, class Alpha, class To>
void combine(Samples a, BasisView<const T> h, const Index* rank, const S* coefficient, Alpha alpha,
             BatchView<const S> x, To to, BatchView<S> moved, S* squared) {
  const Scratch<S> part(squared ? a.count * divide_up(h.dim, chunk) : 0);
  with_packs_of<chunk_pack>(
      h.dim,
      [&](auto n) {
        launch(chunks_of(a, h.dim), combine_kernel<S, n, T, Alpha, To>, a, h, rank, coefficient,
               alpha, x, to, moved, part.data());
      },
      h.data, x.data, to.data(), moved.data);
  if (squared)
    add_chunks<S>(
        a, h.dim, 1, part.data(), [] __device__(Index, Index) { return true; },
        [=] __device__(Index s, Index, S sum) { squared[s] = sum; });
}

/// (h_v, h_v+1) <- (c h_v + t h_v+1, c h_v+1 - t h_v), c and t the cosine and sine of the sample.
template <int n, class S>
__global__ void __launch_bounds__(threads)
    rotate_kernel(Samples a, BasisView<S> h, Index v, const S* cosine, const S* sine) {
  const Index s = a[blockIdx.x];
  if (s < 0) return;
  Chunk<S, n> p = load_chunk<n>(h.vec(s, v), h.dim), q = load_chunk<n>(h.vec(s, v + 1), h.dim);
  for_each_number(
      [c = cosine[s], t = sine[s]](S& x, S& y) {
        const S before = x;
        x = c * before + t * y;
        y = c * y - t * before;
      },
      p, q);
  store_chunk(h.vec(s, v), h.dim, p);
  store_chunk(h.vec(s, v + 1), h.dim, q);
}

}  // namespace deq::cuda
