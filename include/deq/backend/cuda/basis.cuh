// SPDX-License-Identifier: MIT
// The two passes over a basis that a limited-memory method consists of. A block holds a chunk of
// the one vector in registers while the chunks of the basis stream by: every stored number is read
// once a pass.
#pragma once

#include <deq/backend/cuda/reduce.cuh>

namespace deq::cuda {

/// Sums that stand before the products with the basis in a row of parts: squared norms.
inline constexpr int norms = 2;

template <class S, class T, class Load>
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
  for_each_in_chunk(h.dim, [&](Index i, int k) { x[k] = load(s, j, i, norm); });
  for (int k = 0; k < norms; ++k) note(k, norm[k]);
  const Index n = rank[s];
  for (Index v = 0; v < n; ++v) {
    const T* vector = h.vec(s, v);
    S sum = 0;
    for_each_in_chunk(h.dim, [&](Index i, int k) { sum += static_cast<S>(vector[i]) * x[k]; });
    note(norms + v, sum);
  }
  __syncthreads();
  S* const row = part_of_block(part, width);
  for (Index k = threadIdx.x; k < norms + n; k += threads) {
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
  launch(grid, project_kernel<S, T, Load>, a, h, rank, load, part.data());
  add_chunks<S>(a, h.dim, width, part.data(), [=] __device__(Index s, Index k, S sum) {
    if (k < norms)
      put(s, k, sum);
    else if (k - norms < rank[s])
      out[s * h.capacity + k - norms] = sum;
  });
}

template <class S, class T, class Load, class Put>
__global__ void __launch_bounds__(threads)
    combine_kernel(Samples a, BasisView<const T> h, const Index* rank, const S* coefficient,
                   Load load, Put put, S* part) {
  const Index j = blockIdx.x, s = a[j];
  if (s < 0) return;
  const S* c = coefficient + s * h.capacity;
  const Index n = rank[s];
  S y[numbers_a_thread] = {};
  for_each_in_chunk(h.dim, [&](Index i, int k) { y[k] = load(s, i); });
  for (Index v = 0; v < n; ++v) {
    const T* vector = h.vec(s, v);
    const S cv = c[v];
    for_each_in_chunk(h.dim, [&](Index i, int k) { y[k] += cv * static_cast<S>(vector[i]); });
  }
  S squared[1] = {};
  for_each_in_chunk(h.dim, [&](Index i, int k) {
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
  launch(chunks_of(a, h.dim), combine_kernel<S, T, Load, Put>, a, h, rank, coefficient, load, put,
         part.data());
  if (squared)
    add_chunks<S>(a, h.dim, 1, part.data(),
                  [=] __device__(Index s, Index, S sum) { squared[s] = sum; });
}

}  // namespace deq::cuda
