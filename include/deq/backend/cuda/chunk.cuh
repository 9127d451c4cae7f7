// SPDX-License-Identifier: MIT
// The numbers of samples, in chunks: one block has a chunk of one sample, and all that a thread
// needs of it is on its way before the first number is used, and before anything is written. A load
// that comes after a store waits for it where both could be the same place; one number after the
// other would use a fraction of the memory's speed.
#pragma once

#include <algorithm>

#include <deq/backend/cuda/launch.cuh>
#include <deq/backend/cuda/pointwise.cuh>

namespace deq::cuda {

/// Numbers of a sample that one block works on.
inline constexpr int numbers_a_thread = 16;
inline constexpr Index chunk = threads * numbers_a_thread;

/// The numbers of a chunk that are a thread's own, n neighbours at a time.
template <class X, int n>
struct Chunk {
  static constexpr int packs = numbers_a_thread / n;
  Pack<X, n> pack[packs];

  __device__ X& operator[](int k) { return pack[k / n].word[k % n]; }
  __device__ const X& operator[](int k) const { return pack[k / n].word[k % n]; }
};
/// Neighbours that one access moves where columns allow it.
inline constexpr int chunk_pack = 4;

/// Of a sample: at least one, since a block is also what says that a pass over a sample is done.
inline Index chunks(Index dim) { return std::max<Index>(1, divide_up(dim, chunk)); }
inline Grid chunks_of(Samples a, Index dim) { return {.x = a.count, .y = chunks(dim)}; }

/// body(i, p) for the packs of this block's chunk that are this thread's: the numbers from i on,
/// i + n <= dim.
template <int n, class Body>
__device__ void for_each_in_chunk(Index dim, Body&& body) {
  const Index first = static_cast<Index>(blockIdx.y) * chunk + threadIdx.x * n;
#pragma unroll
  for (int p = 0; p < numbers_a_thread / n; ++p)
    if (const Index i = first + p * threads * n; i < dim) body(i, p);
}
/// Numbers of a column; what is not in it is 0.
template <int n, class X>
__device__ Chunk<X, n> load_chunk(const X* column, Index dim) {
  Chunk<X, n> x{};
  for_each_in_chunk<n>(dim, [&](Index i, int p) { x.pack[p] = load_pack<n>(column + i); });
  return x;
}
/// There may be no column.
template <int n, class X>
__device__ Chunk<X, n> load_chunk_if_any(const X* column, Index dim) {
  return column ? load_chunk<n>(column, dim) : Chunk<X, n>{};
}
/// Nothing happens where there is no column.
template <class X, int n>
__device__ void store_chunk(X* column, Index dim, const Chunk<X, n>& x) {
  if (column) for_each_in_chunk<n>(dim, [&](Index i, int p) { store_pack(column + i, x.pack[p]); });
}
/// The same numbers as another type.
template <class S, class X, int n>
__device__ Chunk<S, n> as(const Chunk<X, n>& x) {
  Chunk<S, n> y;
#pragma unroll
  for (int p = 0; p < Chunk<S, n>::packs; ++p) y.pack[p] = as<S>(x.pack[p]);
  return y;
}
/// body(number of each of these chunks).
template <class Body, class First, class... Others>
__device__ void for_each_number(Body&& body, First&& first, Others&&... others) {
#pragma unroll
  for (int k = 0; k < numbers_a_thread; ++k) body(first[k], others[k]...);
}
/// op(number of each).
template <class S, int n, class Op, class... X>
__device__ Chunk<S, n> map_chunk(Op&& op, const Chunk<X, n>&... x) {
  Chunk<S, n> y;
  for_each_number([&](S& to, X... from) { to = op(from...); }, y, x...);
  return y;
}

// --- One number from others, where a vector may be left out -------------------------------------

/// p x + q y; 0 y is 0 even where y holds no number yet.
template <class S>
__device__ S axpby(S p, S x, S q, S y) {
  return q == S(0) ? p * x : p * x + q * y;
}
/// p x; 0 x is 0 even where x is not finite: that is how a vector is left out.
template <class S>
__device__ S times(S p, S x) {
  return p == S(0) ? S(0) : p * x;
}

// --- Where the column of sample s is, which is number j of those that are active ----------------

/// Nowhere, if there is no batch.
template <class X>
struct Whole {
  BatchView<X> batch;
  __device__ X* column(Index s, Index) const { return batch.data ? batch.col(s) : nullptr; }
  const X* data() const { return batch.data; }
};
template <class X>
struct Compact {
  BatchView<X> batch;
  __device__ X* column(Index, Index j) const { return batch.col(j); }
  const X* data() const { return batch.data; }
};
template <class X>
struct InSlot {
  BasisView<X> basis;
  const Index* slot;
  __device__ X* column(Index s, Index) const {
    return slot[s] < 0 ? nullptr : basis.vec(s, slot[s]);
  }
  const X* data() const { return basis.data; }
};
/// Nowhere, if the sample's factor is 0: then it need not have been written.
template <class X>
struct WhereNot0 {
  BatchView<X> batch;
  const X* factor;
  __device__ X* column(Index s, Index) const { return factor[s] == X(0) ? nullptr : batch.col(s); }
  const X* data() const { return batch.data; }
};
template <class X>
Whole(BatchView<X>) -> Whole<X>;
template <class X>
Compact(BatchView<X>) -> Compact<X>;
template <class X>
WhereNot0(BatchView<X>, const X*) -> WhereNot0<X>;
template <class X>
InSlot(BasisView<X>, const Index*) -> InSlot<X>;

// --- One vector from others ---------------------------------------------------------------------

template <class S, int n, class Wanted, class Op, class To, class... From>
__global__ void __launch_bounds__(threads)
    map_numbers_kernel(Samples a, Index dim, Wanted wanted, Op op, To to, From... from) {
  const Index j = blockIdx.x, s = a[j];
  if (s < 0 || !wanted(s)) return;
  const auto of_sample = [&](auto... x) { return op(s, x...); };
  store_chunk(to.column(s, j), dim,
              map_chunk<S>(of_sample, load_chunk_if_any<n>(from.column(s, j), dim)...));
}
/// to_s,i = op(s, from_s,i...) for the numbers i < dim of the samples that are wanted(s).
template <class S, class Wanted, class Op, class To, class... From>
void map_numbers_where(Wanted wanted, Samples a, Index dim, Op op, To to, From... from) {
  with_packs_of<chunk_pack>(
      dim,
      [&](auto n) {
        launch(chunks_of(a, dim), map_numbers_kernel<S, n, Wanted, Op, To, From...>, a, dim, wanted,
               op, to, from...);
      },
      to.data(), from.data()...);
}
/// For every sample.
template <class S, class Op, class To, class... From>
void map_numbers(Samples a, Index dim, Op op, To to, From... from) {
  map_numbers_where<S>([] __device__(Index) { return true; }, a, dim, op, to, from...);
}
template <class S, class From, class To>
void move_numbers(Samples a, Index dim, From from, To to) {
  map_numbers<S>(
      a, dim, [] __device__(Index, S x) { return x; }, to, from);
}

}  // namespace deq::cuda
