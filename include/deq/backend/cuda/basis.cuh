// SPDX-License-Identifier: MIT
// The two passes over a basis that a limited-memory method consists of. A block holds a chunk of
// the one vector in registers while the chunks of the basis stream by: every stored number is read
// once a pass.
#pragma once

#include <type_traits>

#include <deq/backend/cuda/pointwise.cuh>
#include <deq/backend/cuda/reduce.cuh>

namespace deq::cuda {

/// Sums that stand before the products with the basis in a row of parts: squared norms.
inline constexpr int norms = 2;

/// Numbers of the basis that one access moves: two where they are half a word each.
template <class T>
constexpr int basis_pack = sizeof(T) == 2 ? 2 : 1;
/// call(integral constant): how many it moves of vectors of this length.
template <class T, class Call>
void with_basis_pack(Index dim, Call&& call) {
  if (dim % basis_pack<T> == 0)
    call(std::integral_constant<int, basis_pack<T>>{});
  else
    call(std::integral_constant<int, 1>{});
}

/// body(number, k) for the numbers of this thread of a vector of the basis.
template <int n, class S, class T, class Body>
__device__ void for_each_of_vector(const T* vector, Index dim, Body&& body) {
  for_each_in_chunk<n>(dim, [&](Index i, int k) {
    if (k % n != 0) return;
    const Pack<S, n> pack = load_as<S, n>(vector + i);
#pragma unroll
    for (int d = 0; d < n; ++d) body(pack.word[d], k + d);
  });
}

template <int n, class S, class T, class Load>
__global__ void __launch_bounds__(threads)
    project_kernel(Samples a, BasisView<const T> h, const Index* rank, Load load, S* part) {
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

  S x[numbers_a_thread] = {};
  S norm[norms] = {};
  for_each_in_chunk<n>(h.dim, [&](Index i, int k) { x[k] = load(s, j, i, norm); });
  for (int k = 0; k < norms; ++k) note(k, norm[k]);
  const Index vectors = rank[s];
  for (Index v = 0; v < vectors; ++v) {
    S sum = 0;
    for_each_of_vector<n, S>(h.vec(s, v), h.dim, [&](S number, int k) { sum += number * x[k]; });
    note(norms + v, sum);
  }
  __syncthreads();
  S* const row = part_of_block(part, width);
  for (Index k = threadIdx.x; k < norms + vectors; k += threads) {
    S sum = 0;
    for (int w = 0; w < warps; ++w) sum += of_warp[w * width + k];
    row[k] = sum;
  }
}
/// out_s,i = h_s,i . x_s for i < rank_s, x_s's number i being load(sample, position, i, norm),
/// which may add to two more sums; put(sample, k, sum) takes those.
template <class S, class T, class Load, class Put>
void project(Samples a, BasisView<const T> h, const Index* rank, Load load, S* out, Put put) {
  const Index width = norms + h.capacity;
  const Scratch<S> part(a.count * divide_up(h.dim, chunk) * width);
  Grid grid = chunks_of(a, h.dim);
  grid.shared_bytes = static_cast<std::size_t>(threads / warp_threads * width) * sizeof(S);
  with_basis_pack<T>(h.dim, [&](auto n) {
    launch(grid, project_kernel<n, S, T, Load>, a, h, rank, load, part.data());
  });
  add_chunks<S>(
      a, h.dim, width, part.data(),
      [=] __device__(Index s, Index k) { return k - norms < rank[s]; },
      [=] __device__(Index s, Index k, S sum) {
        if (k < norms)
          put(s, k, sum);
        else
          out[s * h.capacity + k - norms] = sum;
      });
}

template <int n, class S, class T, class Load, class Put>
__global__ void __launch_bounds__(threads)
    combine_kernel(Samples a, BasisView<const T> h, const Index* rank, const S* coefficient,
                   Load load, Put put, S* part) {
  const Index j = blockIdx.x, s = a[j];
  if (s < 0) return;
  const S* c = coefficient + s * h.capacity;
  const Index vectors = rank[s];
  S y[numbers_a_thread] = {};
  for_each_in_chunk<n>(h.dim, [&](Index i, int k) { y[k] = load(s, i); });
  for (Index v = 0; v < vectors; ++v) {
    const S cv = c[v];
    for_each_of_vector<n, S>(h.vec(s, v), h.dim, [&](S number, int k) { y[k] += cv * number; });
  }
  S squared[1] = {};
  for_each_in_chunk<n>(h.dim, [&](Index i, int k) {
    y[k] = put(s, i, y[k]);
    squared[0] += y[k] * y[k];
  });
  if (!part) return;
  block_sum(squared);
  if (threadIdx.x == 0) *part_of_block(part, 1) = squared[0];
}
/// put(sample, i, y_i) for y_s = x_s + sum_v c_s,v h_s,v, v < rank_s, x_s's number i being
/// load(sample, i); squared_s = ||y_s||^2, of what `put` returns, unless it is null.
template <class S, class T, class Load, class Put>
void combine(Samples a, BasisView<const T> h, const Index* rank, const S* coefficient, Load load,
             Put put, S* squared) {
  const Scratch<S> part(squared ? a.count * divide_up(h.dim, chunk) : 0);
  with_basis_pack<T>(h.dim, [&](auto n) {
    launch(chunks_of(a, h.dim), combine_kernel<n, S, T, Load, Put>, a, h, rank, coefficient, load,
           put, part.data());
  });
  if (squared)
    add_chunks<S>(a, h.dim, 1, part.data(),
                  [=] __device__(Index s, Index, S sum) { squared[s] = sum; });
}

}  // namespace deq::cuda
