// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/cuda/pointwise.cuh>
#include <deq/backend/cuda/reduce.cuh>
#include <deq/backend/geometry.hpp>

namespace deq {

namespace cuda {

/// Some of the dimensions of a LoopNest, the innermost first, and where K operands are in it.
template <std::size_t K>
struct SubNest {
  static constexpr int max_rank = static_cast<int>(Shape::max_rank);
  int rank = 0;
  Index count = 1;
  Index extent[max_rank] = {};
  Index stride[K][max_rank] = {};

  void add(const LoopNest<K>& nest, std::size_t d) {
    extent[rank] = nest.extent[d];
    for (std::size_t k = 0; k < K; ++k) stride[k][rank] = nest.stride[k][d];
    count *= extent[rank++];
  }
  /// Moves the offsets to iteration i.
  DEQ_HOST_DEVICE void advance(Index i, Index (&offset)[K]) const {
    for (int r = 0; r < rank; ++r) {
      const bool last = r + 1 == rank;
      const Index place = last ? i : i % extent[r];
      if (!last) i /= extent[r];
      for (std::size_t k = 0; k < K; ++k) offset[k] += place * stride[k][r];
    }
  }
};

template <class S, class Function, std::size_t K, class X>
struct BroadcastTerm {
  Function f;
  const X* in[K - 1];

  __device__ S operator()(const Index (&offset)[K]) const {
    return [&]<std::size_t... I>(std::index_sequence<I...>) { return f(in[I][offset[I + 1]]...); }
    (std::make_index_sequence<K - 1>{});
  }
};

/// A thread, or a block, for each output.
template <bool by_blocks, class S, class Term, std::size_t K>
__global__ void __launch_bounds__(threads)
    broadcast_kernel(SubNest<K> kept, SubNest<K> reduced, Term term, S* out, bool accumulate) {
  const Index first = by_blocks ? static_cast<Index>(blockIdx.x) : thread_index();
  const Index step = by_blocks ? gridDim.x : static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index target = first; target < kept.count; target += step) {
    Index base[K] = {};
    kept.advance(target, base);
    S sum[1] = {};
    for (Index r = by_blocks ? threadIdx.x : 0; r < reduced.count; r += by_blocks ? threads : 1) {
      Index offset[K];
      for (std::size_t k = 0; k < K; ++k) offset[k] = base[k];
      reduced.advance(r, offset);
      sum[0] += term(offset);
    }
    if constexpr (by_blocks) block_sum(sum);
    if (!by_blocks || threadIdx.x == 0) put(out[base[0]], sum[0], accumulate);
  }
}

}  // namespace cuda

/// out (+)= the sum of f(in...) over the dimensions in which `out`, operand 0 of the nest, is
/// repeated. f is called on the device.
template <class S, class Function, std::size_t K, class X, class... In>
void broadcast_sum(Cuda<S>, const LoopNest<K>& nest, Function f, S* out, bool accumulate,
                   const X* first, const In*... more) {
  static_assert(K == 2 + sizeof...(In), "one operand is the output, the others are the inputs");
  cuda::SubNest<K> kept, reduced;
  for (std::size_t d = 0; d < static_cast<std::size_t>(nest.rank); ++d)
    (nest.stride[0][d] ? kept : reduced).add(nest, d);
  using Term = cuda::BroadcastTerm<S, Function, K, X>;
  const Term term{f, {first, more...}};
  // A block of threads is worth its while for a long sum, or where outputs are few.
  constexpr Index long_sum = 1024, few = 4096;
  // A sum over the rows of a matrix.
  if (kept.rank == 1 && reduced.rank == 1 && nest.stride[0][0] != 0)
    return cuda::add_rows<S>(
        reduced.count, kept.count,
        [=] __device__(Index r, Index i) {
          Index offset[K];
          for (std::size_t k = 0; k < K; ++k)
            offset[k] = i * kept.stride[k][0] + r * reduced.stride[k][0];
          return static_cast<S>(term(offset));
        },
        [=] __device__(Index i, S sum) { cuda::put(out[i], sum, accumulate); });
  if (reduced.count < (kept.count < few ? cuda::threads / 4 : long_sum))
    cuda::launch(cuda::grid_of(kept.count), cuda::broadcast_kernel<false, S, Term, K>, kept,
                 reduced, term, out, accumulate);
  else
    cuda::launch({.x = std::min(kept.count, cuda::enough_blocks)},
                 cuda::broadcast_kernel<true, S, Term, K>, kept, reduced, term, out, accumulate);
}

}  // namespace deq
