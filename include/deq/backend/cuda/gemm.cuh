// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backend/cuda/conv/weight_gradient.cuh>
#include <deq/backend/cuda/cuda.cuh>

namespace deq {

namespace cuda {

/// Of the sum, the part that blockIdx.z says; the parts of c follow each other.
template <class T>
__global__ void __launch_bounds__(threads)
    gemm_kernel(MatrixView<typename T::S> a, MatrixView<typename T::S> b, Index terms,
                Index terms_a_part, typename T::S* c, bool accumulate) {
  const Index first_row = static_cast<Index>(blockIdx.x) * T::rows,
              first_column = static_cast<Index>(blockIdx.y) * T::columns;
  const Index first = blockIdx.z * terms_a_part,
              last = first + terms_a_part < terms ? first + terms_a_part : terms;
  typename T::Word* const shared = dynamic_shared<typename T::Word>();
  MatrixRows<T> of_a(a, first_row, first, last);
  MatrixColumns<T, typename T::S, 1> of_b(b, first_column, first, last);
  T product;
  product.multiply(of_a, of_b, static_cast<int>((last - first + T::stage - 1) / T::stage), shared);
  auto* const sums = reinterpret_cast<typename T::S*>(shared);
  product.spread(sums);
  write_product<T>(a.extent, b.extent, first_row, first_column, sums,
                   c + blockIdx.z * a.extent * b.extent, accumulate);
}

/// C (+)= A B. A long sum of few columns, as a classifier has it, is cut into parts. Into how many
/// does not depend on the rows, of which each is by itself.
template <class A, class S>
void multiply(const MatrixView<S>& a, const MatrixView<S>& b, Index terms, S* c, bool accumulate) {
  const TilePlan plan(a.extent, b.extent, processors());
  constexpr Index least = 256, most = 8;
  const SumPlan sum(terms, plan.column_tiles > 1 ? 1 : most, least);
  const bool in_parts = sum.parts > 1;
  const Index size = a.extent * b.extent;
  const Scratch<S> parts(in_parts ? sum.parts * size : 0);
  with_tile(plan, [&](auto rows, auto columns) {
    using T = Tile<A, rows, columns>;
    launch({.x = plan.row_tiles,
            .y = plan.column_tiles,
            .z = sum.parts,
            .shared_bytes = T::shared_bytes},
           gemm_kernel<T>, a, b, terms, sum.terms_a_part, in_parts ? parts.data() : c,
           accumulate && !in_parts);
  });
  if (in_parts)
    sum_parts(sum.parts, size, parts.data(),
              [=] __device__(Index i, S total) { put(c[i], total, accumulate); });
}

}  // namespace cuda

/// C (+)= op(A) op(B). A row of C does not depend on the others.
template <class S, class P>
void gemm(Cuda<S, P>, const GemmGeometry& g, const S* a, const S* b, S* c, bool accumulate) {
  const cuda::MatrixView<S> of_a{a, g.m, g.transpose_a ? 1 : g.k, g.transpose_a ? g.m : 1};
  const cuda::MatrixView<S> of_b{b, g.n, g.transpose_b ? g.k : 1, g.transpose_b ? 1 : g.n};
  cuda::multiply<cuda::Arithmetic<S, P>>(of_a, of_b, g.k, c, accumulate);
}

// A matrix that is used again and again: op(B) itself, so that its rows are read as they come.

template <class S, class P>
Index gemm_packed_size(Cuda<S, P>, Index n, Index k) {
  return n * k;
}
template <class S, class P>
void gemm_pack(Cuda<S, P> backend, Index n, Index k, bool transpose_b, const S* b, S* packed) {
  if (transpose_b)
    transpose_matrix(backend, n, k, b, packed, false);
  else
    Cuda<S, P>::copy_bytes(packed, b, static_cast<std::size_t>(n * k) * sizeof(S));
}
template <class S, class P>
void gemm_packed(Cuda<S, P> backend, Index m, Index n, Index k, const S* a, const S* packed, S* c,
                 bool accumulate) {
  gemm(backend, GemmGeometry{m, n, k}, a, packed, c, accumulate);
}

}  // namespace deq
