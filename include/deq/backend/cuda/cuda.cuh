// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <utility>

#include <deq/backend/concept.hpp>
#include <deq/backend/cuda/basis.cuh>
#include <deq/backend/cuda/graph.cuh>
#include <deq/backend/cuda/precision.hpp>
#include <deq/core/host_pool.hpp>

namespace deq {

namespace cuda {

/// Gaussian elimination with row pivoting of a column-major matrix, by one block.
template <class S>
__global__ void __launch_bounds__(threads) solve_dense_kernel(Index n, S* matrix, S* rhs) {
  const auto at = [=](Index i, Index j) -> S& { return matrix[i + j * n]; };
  __shared__ Index pivot;
  for (Index k = 0; k < n; ++k) {
    if (threadIdx.x == 0) {
      pivot = k;
      for (Index i = k + 1; i < n; ++i)
        if (std::abs(at(i, k)) > std::abs(at(pivot, k))) pivot = i;
    }
    __syncthreads();
    const auto exchange = [&](S& x, S& y) {
      const S old = x;
      x = y;
      y = old;
    };
    if (pivot != k) {
      for (Index j = k + threadIdx.x; j < n; j += blockDim.x) exchange(at(k, j), at(pivot, j));
      if (threadIdx.x == 0) exchange(rhs[k], rhs[pivot]);
    }
    __syncthreads();
    for (Index i = k + 1 + threadIdx.x; i < n; i += blockDim.x) {
      const S factor = at(i, k) / at(k, k);
      for (Index j = k + 1; j < n; ++j) at(i, j) -= factor * at(k, j);
      rhs[i] -= factor * rhs[k];
    }
    __syncthreads();
  }
  if (threadIdx.x == 0)
    for (Index k = n - 1; k >= 0; --k) {
      for (Index j = k + 1; j < n; ++j) rhs[k] -= at(k, j) * rhs[j];
      rhs[k] /= at(k, k);
    }
}

}  // namespace cuda

/// The CUDA backend: memory of the device from a pool, kernels in one stream. See
/// backend/concept.hpp for what each primitive computes. Sums have one order, so that all results
/// have the same bits in every run; it is not the order of the CPU backend.
///
/// Sets of samples keep their length: whoever is filtered out leaves a hole, so that the host need
/// not know how many are left, and no primitive but a download waits for the device.
///
/// `Precision` says in which numbers convolutions and matrix products multiply; sums, and all other
/// kernels, have S:
///
///     cuda::Strict   S itself, on the ordinary units
///     cuda::Tf32     float rounded to 10 bits of mantissa, on tensor cores
///     cuda::Bf16     bfloat16, 7 bits of mantissa, on tensor cores; images are stored like that
template <class S, class Precision = cuda::Strict>
struct Cuda;

template <class S>
struct Cuda<S, cuda::Strict> : cuda::PooledMemory {
  using Scalar = S;
  using View = BatchView<S>;
  using ConstView = BatchView<const S>;
  using Basis = BasisView<S>;
  using ConstBasis = BasisView<const S>;
  using Rows = cuda::Rows;
  using Replay = cuda::Replay;
  static constexpr bool whole_batches = true, concurrent = true;

  static void copy_bytes(void* to, const void* from, std::size_t bytes) {
    transfer(to, from, bytes, cudaMemcpyDeviceToDevice, "copy on the device");
  }
  static void upload_bytes(void* to, const void* from, std::size_t bytes) {
    require<DeviceError>(bytes == 0 || !recording(),
                         "CUDA: recorded work uploads; do that before the graph is launched");
    transfer(to, from, bytes, cudaMemcpyHostToDevice, "copy to the device");
    if (bytes) cuda::synchronize();  // `from` may go now
  }
  static void download_bytes(void* to, const void* from, std::size_t bytes) {
    require<DeviceError>(bytes == 0 || !recording(),
                         "CUDA: recorded work downloads; read that in when_downloaded()");
    transfer(to, from, bytes, cudaMemcpyDeviceToHost, "copy to the host");
    if (bytes) cuda::synchronize();
  }

  static void fill(S* x, Index n, S value) {
    cuda::for_each_index(n, [=] __device__(Index i) { x[i] = value; });
  }

  static void gather(Samples a, ConstView whole, View compact) {
    cuda::move_numbers<S>(a, whole.dim, cuda::Whole{whole}, cuda::Compact{compact});
  }
  static void scatter(Samples a, ConstView compact, View whole) {
    cuda::move_numbers<S>(a, whole.dim, cuda::Compact{compact}, cuda::Whole{whole});
  }
  static void copy(Samples a, ConstView x, View y) {
    cuda::move_numbers<S>(a, x.dim, cuda::Whole{x}, cuda::Whole{y});
  }
  static void copy(Samples a, ConstView x, View y, const bool* where) {
    cuda::map_numbers_where<S>([=] __device__(Index s) { return where[s]; }, a, x.dim,
                               [] __device__(Index, S number) { return number; }, cuda::Whole{y},
                               cuda::Whole{x});
  }

  static void residual(Samples a, ConstView f, ConstView z, View g, S* g_squared, S* f_squared) {
    project_residual(a, f, z, g, ConstBasis{nullptr, z.dim, 0}, nullptr,
                     cuda::AddedApart{cuda::PutProducts<S>{0, nullptr, g_squared, f_squared}});
  }
  static void dot(Samples a, ConstView x, ConstView y, S* out) {
    project(a, ConstBasis{y.data, y.dim, 1}, nullptr, x, out);
  }
  static void axpby(Samples a, S alpha, ConstView x, S beta, View y) {
    cuda::map_numbers<S>(
        a, x.dim, [=] __device__(Index, S p, S q) { return cuda::axpby(alpha, p, beta, q); },
        cuda::Whole{y}, cuda::Whole{x}, cuda::Whole{beta == S(0) ? View{} : y});
  }
  static void axpby(Samples a, const S* alpha, ConstView x, const S* beta, View y) {
    cuda::map_numbers<S>(
        a, x.dim,
        [=] __device__(Index s, S p, S q) { return cuda::axpby(alpha[s], p, beta[s], q); },
        cuda::Whole{y}, cuda::Whole{x}, cuda::WhereNot0{y, beta});
  }

  // A basis may be stored as S or as Bfloat16. With no ranks every sample has all of its vectors.
  template <class T>
  static void project(Samples a, BasisView<T> h, const Index* rank, ConstView x, S* out) {
    cuda::project<S>(
        a, BasisView<const T>(h), rank,
        cuda::AddedApart{cuda::PutProducts<S>{h.capacity, out, nullptr, nullptr}},
        [] __device__(S(&)[cuda::norms], S number) { return number; }, cuda::Whole{View{}},
        cuda::Whole{x});
  }
  template <class T, class Then>
  static void residual(Samples a, ConstView f, ConstView z, View g, S* g_squared, S* f_squared,
                       BasisView<T> h, const Index* rank, S* out, Then then) {
    project_residual(
        a, f, z, g, h, rank,
        cuda::AddedByLastBlock{cuda::PutProducts<S>{h.capacity, out, g_squared, f_squared}, then});
  }
  /// Of residual; public for nvcc, which takes no device lambda in a private function.
  template <class T, class Sums>
  static void project_residual(Samples a, ConstView f, ConstView z, View g, BasisView<T> h,
                               const Index* rank, const Sums& sums) {
    cuda::project<S>(
        a, BasisView<const T>(h), rank, sums,
        [] __device__(S(&squared)[cuda::norms], S of_f, S of_z) {
          const S difference = of_f - of_z;
          squared[0] += difference * difference;
          squared[1] += of_f * of_f;
          return difference;
        },
        cuda::Whole{g}, cuda::Compact{f}, cuda::Whole{z});
  }
  template <class T>
  static void combine(Samples a, BasisView<T> h, const Index* rank, const S* coefficient, S alpha,
                      ConstView x, View y) {
    cuda::combine<S>(
        a, BasisView<const T>(h), rank, coefficient,
        [=] __device__(Index, S number) { return alpha * number; }, x, cuda::Whole{y});
  }
  static void extend(Samples a, Basis h, const Index* rank, const S* coefficient, const S* alpha,
                     ConstView x, const Index* slot) {
    cuda::combine<S>(
        a, ConstBasis(h), rank, coefficient,
        [=] __device__(Index s, S number) { return cuda::times(alpha[s], number); }, x,
        cuda::InSlot{h, slot});
  }
  template <class T, class Then>
  static void step(Samples a, BasisView<T> h, const Index* rank, const S* coefficient,
                   const S* alpha, ConstView f, const Index* slot, View z, View best,
                   const bool* improved, S* squared, Then then) {
    cuda::make_step(a, cuda::Step<S, T>{h, rank, coefficient, alpha, f, slot, z, best, improved},
                    squared, then);
  }
  static void store(Samples a, const S* alpha, ConstView x, Basis h, const Index* slot) {
    cuda::map_numbers<S>(
        a, h.dim, [=] __device__(Index s, S number) { return cuda::times(alpha[s], number); },
        cuda::InSlot{h, slot}, cuda::Whole{x});
  }
  static void accumulate(Samples a, const S* alpha, ConstBasis h, const Index* slot, View y) {
    cuda::map_numbers_where<S>(
        [=] __device__(Index s) { return alpha[s] != S(0); }, a, h.dim,
        [=] __device__(Index s, S sum, S number) { return sum + alpha[s] * number; },
        cuda::Whole{y}, cuda::Whole{y}, cuda::InSlot{h, slot});
  }
  static void rotate(Samples a, Basis h, Index v, const S* cosine, const S* sine) {
    cuda::with_packs_of<cuda::chunk_pack>(
        h.dim,
        [&](auto n) {
          cuda::launch(cuda::chunks_of(a, h.dim), cuda::rotate_kernel<n, S>, a, h, v, cosine, sine);
        },
        h.data);
  }

  template <class Function>
  static void in_blocks(Index count, Index, Function&& function) {
    function(Index{0}, count);
  }
  template <class Function>
  static void for_each(Samples a, Function function) {
    cuda::for_each_sample(a.count, [=] __device__(Index j) {
      if (a[j] >= 0) function(a[j]);
    });
  }
  template <class Function>
  static void for_each_team(Samples a, Function function) {
    using Team = cuda::Team<cuda::warp_threads>;
    cuda::for_each_team<cuda::warp_threads>(a.count, [=] __device__(Index j, Team team) {
      if (a[j] >= 0) function(a[j], team);
    });
  }
  template <class Predicate>
  static Samples filter(Samples a, Predicate keep, Index* kept) {
    cuda::for_each_index(
        a.count, [=] __device__(Index j) { kept[j] = a[j] >= 0 && keep(a[j]) ? a[j] : Index{-1}; });
    return {kept, a.count};
  }
  template <class Work>
  static void repeat(const Samples& a, Work&& work) {
    if (cuda::Graph* const graph = cuda::Graph::recording())
      graph->repeat(a, work);
    else
      while (!empty(a)) work();
  }
  using Lanes = cuda::Lanes;
  template <class Work>
  static void side_by_side(Index n, Work&& work, Lanes& lanes) {
    if (cuda::Graph* const graph = cuda::Graph::recording())
      graph->side_by_side(n, work, lanes);
    else
      for (Index i = 0; i < n; ++i) work(i);
  }
  template <class Work>
  static void side_by_side(Index n, Work&& work) {
    Lanes lanes;
    side_by_side(n, work, lanes);
  }
  template <class Work>
  static void when_done(Work&& work) {
    if (cuda::Graph* const graph = cuda::Graph::recording())
      graph->when_done(std::forward<Work>(work));
    else
      work();
  }
  template <class T, class Work>
  static void when_downloaded(const T* from, Index n, Work&& work) {
    if (cuda::Graph* const graph = cuda::Graph::recording())
      return graph->when_downloaded(from, n, std::forward<Work>(work));
    PoolVector<T> host(static_cast<std::size_t>(n));
    download_bytes(host.data(), from, host.size() * sizeof(T));
    work(std::span<const T>(host));
  }
  static bool recording() { return cuda::Graph::recording() != nullptr; }
  static bool empty(Samples a) {
    if (recording()) return a.empty();  // the device will know
    PoolVector<Index> ids(static_cast<std::size_t>(a.count));
    download_bytes(ids.data(), a.id, ids.size() * sizeof(Index));
    return std::all_of(ids.begin(), ids.end(), [](Index s) { return s < 0; });
  }

  /// Gaussian elimination with row pivoting, for the tests' oracle: one block, no blocking.
  static void solve_dense(Index n, S* matrix, S* rhs) {
    cuda::launch({}, cuda::solve_dense_kernel<S>, n, matrix, rhs);
  }

 private:
  static void transfer(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                       const char* what) {
    if (bytes) cuda::check(cudaMemcpyAsync(to, from, bytes, kind, cuda::stream()), what);
  }
};

/// Another precision is another type, with the same memory and the same primitives.
template <class S, class Precision>
struct Cuda : Cuda<S> {
  using Image = std::conditional_t<std::is_same_v<Precision, cuda::Bf16>, Bfloat16, S>;
  static_assert(std::is_same_v<S, float>, "deq: tensor cores multiply float: Cuda<float, ...>");
};

static_assert(DenseBackend<Cuda<float>> && DenseBackend<Cuda<double>>);

}  // namespace deq
