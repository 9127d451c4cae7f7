// SPDX-License-Identifier: MIT
// Many sums, of rows, channels or statistics, each by a team of threads: a warp or a block.
#pragma once

#include <deq/backend/cuda/reduce.cuh>

namespace deq::cuda {

/// `size` threads that work together, as one of them sees it.
template <int size>
struct Team {
  static_assert(size == warp_threads || size == threads);
  int rank;

  /// body(i) for i in [0, n), shared by the team.
  template <class Body>
  __device__ void for_each(Index n, Body body) const {
    for (Index i = rank; i < n; i += size) body(i);
  }
  /// What one thread has written, all see after that.
  __device__ void sync() const {
    if constexpr (size == warp_threads)
      __syncwarp();
    else
      __syncthreads();
  }
  /// The sums of K numbers over the team, in every thread of it.
  template <int K, class S>
  __device__ void add(S (&v)[K]) const {
    if constexpr (size == warp_threads) {
      for (int k = 0; k < K; ++k) v[k] = warp_sum(v[k]);
    } else {
      __shared__ S sum[K];
      block_sum(v);
      if (rank == 0)
        for (int k = 0; k < K; ++k) sum[k] = v[k];
      __syncthreads();
      for (int k = 0; k < K; ++k) v[k] = sum[k];
    }
  }
  /// The sum of term(i) for i in [0, n), in every thread.
  template <class Term>
  __device__ auto sum(Index n, Term term) const {
    decltype(term(n)) v[1] = {};
    for_each(n, [&](Index i) { v[0] += term(i); });
    add(v);
    return v[0];
  }
};

using Warp = Team<warp_threads>;
using Block = Team<threads>;

template <int size, class Body>
__global__ void __launch_bounds__(threads) team_kernel(Index n, Body body) {
  const Index i = thread_index() / size;
  if (i < n) body(i, Team<size>{static_cast<int>(threadIdx.x) % size});
}
/// body(i, team) for i in [0, n), each by a team of `size` threads.
template <int size, class Body>
void for_each_team(Index n, Body body) {
  launch({.x = divide_up<Index>(n * size, threads)}, team_kernel<size, Body>, n, body);
}

}  // namespace deq::cuda
