// SPDX-License-Identifier: MIT
// The two passes over a basis that a limited-memory method consists of. A block holds a chunk of
// the one vector in registers while the chunks of the basis stream by: every stored number is read
// once a pass.
#pragma once

#include <type_traits>

#include <deq/backend/cuda/chunk.cuh>
#include <deq/backend/cuda/team.cuh>

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
// Each chunk writes its part of `width` sums to a row of its own. Either a second, small kernel
// adds them up, or the block that is the last of its sample to have done so, which then goes on
// with what waits for the sums: no launch comes between a pass over a sample and its small algebra.

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
         chunks(dim), width, part, wanted, put);
}
/// The row of this block.
template <class S>
__device__ S* part_of_block(S* part, Index width) {
  return part + (static_cast<Index>(blockIdx.x) * gridDim.y + blockIdx.y) * width;
}

/// Whether this block is the last of a sample's, and so sees what the others have written.
__device__ inline bool is_last_to_arrive(unsigned* arrived) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // what all of the block have written comes before its arrival
    last = atomicInc(arrived, gridDim.y - 1) == gridDim.y - 1;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}
/// What a block does when it has written its part: the last of a sample's has put(s, k, sum) called
/// for k < wanted, and then(s, team).
template <class S, class Put, class Then>
struct LastBlock {
  unsigned* arrived;  ///< blocks of each of the active samples, in turn
  const S* part;
  Put put;
  Then then;

  __device__ void operator()(Index s, Index width, Index wanted) const {
    if (!is_last_to_arrive(arrived + blockIdx.x)) return;
    const S* const first = part + static_cast<Index>(blockIdx.x) * gridDim.y * width;
    for (Index k = threadIdx.x; k < wanted; k += threads) {
      S sum = 0;
      for (Index c = 0; c < gridDim.y; ++c) sum += first[c * width + k];
      put(s, k, sum);
    }
    __syncthreads();
    if (threadIdx.x < warp_threads) then(s, Warp{static_cast<int>(threadIdx.x)});
  }
};
struct Nothing {
  __device__ void operator()(Index, Index, Index) const {}
};

/// The two ways, for a pass that says in_block(samples, part)(s, width, wanted) when a block has
/// written its part.
template <class Put>
struct AddedApart {
  Put put;

  template <class S>
  Nothing in_block(Index, const S*) const {
    return {};
  }
  template <class S, class Wanted>
  void finish(Samples a, Index dim, Index width, const S* part, Wanted wanted) const {
    add_chunks<S>(a, dim, width, part, wanted, put);
  }
};
template <class Put, class Then>
struct AddedByLastBlock {
  Put put;
  Then then;

  template <class S>
  LastBlock<S, Put, Then> in_block(Index samples, const S* part) const {
    return {counters(samples), part, put, then};
  }
  template <class S, class Wanted>
  void finish(Samples, Index, Index, const S*, Wanted) const {}
};
template <class Put>
AddedApart(Put) -> AddedApart<Put>;
template <class Put, class Then>
AddedByLastBlock(Put, Then) -> AddedByLastBlock<Put, Then>;

// --- Products with the basis --------------------------------------------------------------------

/// Sums that stand before the products with the basis in a row of parts: squared norms.
inline constexpr int norms = 2;

/// The vectors of a basis that a sample has: all, if there are no ranks.
template <class T>
__device__ Index vectors_of(BasisView<const T> h, const Index* rank, Index s) {
  return rank ? rank[s] : h.capacity;
}

template <class S, int n, class T, class InBlock, class Op, class To, class... From>
__global__ void __launch_bounds__(threads)
    project_kernel(Samples a, BasisView<const T> h, const Index* rank, S* part, InBlock in_block,
                   Op op, To to, From... from) {
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
  in_block(s, width, norms + vectors);
}
/// The sums of x = op(norm, from...), number by number: op may add to the two norms, the products
/// h_s,i . x_s, i < rank_s (or all, if there are no ranks), follow them. `to` keeps x.
template <class S, class T, class Sums, class Op, class To, class... From>
void project(Samples a, BasisView<const T> h, const Index* rank, const Sums& sums, Op op, To to,
             From... from) {
  const Index width = norms + h.capacity;
  const Scratch<S> part(a.count * chunks(h.dim) * width);
  Grid grid = chunks_of(a, h.dim);
  grid.shared_bytes = static_cast<std::size_t>(threads / warp_threads * width) * sizeof(S);
  const auto in_block = sums.in_block(a.count, static_cast<const S*>(part.data()));
  with_packs_of<chunk_pack>(
      h.dim,
      [&](auto n) {
        launch(grid,
               project_kernel<S, n, T, std::remove_const_t<decltype(in_block)>, Op, To, From...>, a,
               h, rank, part.data(), in_block, op, to, from...);
      },
      h.data, to.data(), from.data()...);
  sums.finish(a, h.dim, width, static_cast<const S*>(part.data()),
              [=] __device__(Index s, Index k) { return k - norms < vectors_of(h, rank, s); });
}
/// put(sample, k, sum): norms to where they are asked for, products to `out`.
template <class S>
struct PutProducts {
  Index capacity;
  S *out, *first_norm, *second_norm;
  __device__ void operator()(Index s, Index k, S sum) const {
    if (k >= norms)
      out[s * capacity + k - norms] = sum;
    else if (S* const norm = k == 0 ? first_norm : second_norm)
      norm[s] = sum;
  }
};

// --- Combinations of the basis ------------------------------------------------------------------

/// y += sum_v c_v h_v, v < rank_s.
template <class S, int n, class T>
__device__ void add_combination(Chunk<S, n>& y, BasisView<const T> h, Index s, const Index* rank,
                                const S* coefficient) {
  const S* const c = coefficient + s * h.capacity;
  for_each_vector<S, n>(h, s, rank[s], [&](Index v, const Chunk<T, n>& vector) {
    for_each_number([cv = c[v]](S& sum, S number) { sum += cv * number; }, y, as<S>(vector));
  });
}

template <class S, int n, class T, class Alpha, class To>
__global__ void __launch_bounds__(threads)
    combine_kernel(Samples a, BasisView<const T> h, const Index* rank, const S* coefficient,
                   Alpha alpha, BatchView<const S> x, To to) {
  const Index j = blockIdx.x, s = a[j];
  if (s < 0) return;
  Chunk<S, n> y =
      map_chunk<S>([&](S number) { return alpha(s, number); }, load_chunk<n>(x.col(s), h.dim));
  add_combination(y, h, s, rank, coefficient);
  store_chunk(to.column(s, j), h.dim, y);
}
/// alpha(s, x_s) + sum_v c_s,v h_s,v, v < rank_s, which `to` keeps.
template <class S, class T, class Alpha, class To>
void combine(Samples a, BasisView<const T> h, const Index* rank, const S* coefficient, Alpha alpha,
             BatchView<const S> x, To to) {
  with_packs_of<chunk_pack>(
      h.dim,
      [&](auto n) {
        launch(chunks_of(a, h.dim), combine_kernel<S, n, T, Alpha, To>, a, h, rank, coefficient,
               alpha, x, to);
      },
      h.data, x.data, to.data());
}

/// A step of Broyden's method, see Backend's `step`.
template <class S, class T>
struct Step {
  BasisView<T> h;
  const Index* rank;
  const S *coefficient, *alpha;
  BatchView<const S> f;
  const Index* slot;
  BatchView<S> z, best;
  const bool* improved;
};
/// So many blocks at a time have enough on their way. Doubles, and addresses where there are no
/// packs, need the registers of two.
template <class S, int n>
inline constexpr int blocks_at_a_time = n == chunk_pack && sizeof(S) == 4 ? 4 : 2;
template <class S, int n, class T, class InBlock>
__global__ void __launch_bounds__(threads, (blocks_at_a_time<S, n>))
    step_kernel(Samples a, Step<S, T> step, S* part, InBlock in_block) {
  const Index j = blockIdx.x, s = a[j], dim = step.h.dim;
  if (s < 0) return;
  const Chunk<S, n> before = load_chunk<n>(step.z.col(s), dim);
  Chunk<S, n> y =
      map_chunk<S>([alpha = step.alpha[s]](S of_f, S of_z) { return times(alpha, of_f - of_z); },
                   load_chunk<n>(step.f.col(j), dim), before);
  add_combination(y, BasisView<const T>(step.h), s, step.rank, step.coefficient);
  const Chunk<T, n> stored = as<T>(y);
  y = as<S>(stored);  // the vector is what is stored of it
  S squared[1] = {};
  for_each_number([&](S number) { squared[0] += number * number; }, y);
  if (step.improved[s]) store_chunk(step.best.col(s), dim, before);
  store_chunk(step.z.col(s), dim, map_chunk<S>([](S p, S q) { return p + q; }, before, y));
  store_chunk(InSlot{step.h, step.slot}.column(s, j), dim, stored);
  block_sum(squared);
  if (threadIdx.x == 0) *part_of_block(part, 1) = squared[0];
  in_block(s, 1, 1);
}
/// squared_s = ||y_s||^2 of what has been made, and then(s, team).
template <class S, class T, class Then>
void make_step(Samples a, const Step<S, T>& step, S* squared, Then then) {
  const Scratch<S> part(a.count * chunks(step.h.dim));
  const AddedByLastBlock sums{PutProducts<S>{0, nullptr, squared, nullptr}, then};
  const auto in_block = sums.in_block(a.count, static_cast<const S*>(part.data()));
  with_packs_of<chunk_pack>(
      step.h.dim,
      [&](auto n) {
        launch(chunks_of(a, step.h.dim),
               step_kernel<S, n, T, std::remove_const_t<decltype(in_block)>>, a, step, part.data(),
               in_block);
      },
      step.h.data, step.f.data, step.z.data, step.best.data);
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
