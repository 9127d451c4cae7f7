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

/// p x + q y; 0 y is 0 even where y holds no number yet.
template <class S>
__device__ S axpby(S p, S x, S q, S y) {
  return q == S(0) ? p * x : p * x + q * y;
}
/// g = f - z; adds g^2 and f^2 to the two sums.
template <class S>
__device__ S subtract(S f, S z, S& g, S (&squared)[2]) {
  g = f - z;
  squared[0] += g * g;
  squared[1] += f * f;
  return g;
}

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
    cuda::for_each_number(a, whole.dim, [=] __device__(Index s, Index j, Index i) {
      compact.col(j)[i] = whole.col(s)[i];
    });
  }
  static void scatter(Samples a, ConstView compact, View whole) {
    cuda::for_each_number(a, whole.dim, [=] __device__(Index s, Index j, Index i) {
      whole.col(s)[i] = compact.col(j)[i];
    });
  }
  static void copy(Samples a, ConstView x, View y) {
    cuda::for_each_number(a, x.dim,
                          [=] __device__(Index s, Index, Index i) { y.col(s)[i] = x.col(s)[i]; });
  }

  static void residual(Samples a, ConstView f, ConstView z, View g, S* g_squared, S* f_squared) {
    cuda::sample_sums<2, S>(
        a, z.dim,
        [=] __device__(Index s, Index j, Index i, S(&sum)[2]) {
          cuda::subtract(f.col(j)[i], z.col(s)[i], g.col(s)[i], sum);
        },
        [=] __device__(Index s, Index k, S sum) { (k == 0 ? g_squared : f_squared)[s] = sum; });
  }
  static void dot(Samples a, ConstView x, ConstView y, S* out) {
    cuda::sample_sums<1, S>(
        a, x.dim,
        [=] __device__(Index s, Index, Index i, S(&sum)[1]) {
          sum[0] += x.col(s)[i] * y.col(s)[i];
        },
        [=] __device__(Index s, Index, S sum) { out[s] = sum; });
  }
  static void axpby(Samples a, S alpha, ConstView x, S beta, View y) {
    cuda::for_each_number(a, x.dim, [=] __device__(Index s, Index, Index i) {
      y.col(s)[i] = cuda::axpby(alpha, x.col(s)[i], beta, y.col(s)[i]);
    });
  }
  static void axpby(Samples a, const S* alpha, ConstView x, const S* beta, View y) {
    cuda::for_each_number(a, x.dim, [=] __device__(Index s, Index, Index i) {
      y.col(s)[i] = cuda::axpby(alpha[s], x.col(s)[i], beta[s], y.col(s)[i]);
    });
  }

  // A basis may be stored as S or as Bfloat16.
  template <class T>
  static void project(Samples a, BasisView<T> h, const Index* rank, ConstView x, S* out) {
    cuda::project<S>(
        a, BasisView<const T>(h), rank,
        [=] __device__(Index s, Index, Index i, S(&)[cuda::norms]) { return x.col(s)[i]; }, out,
        [] __device__(Index, Index, S) {});
  }
  template <class T>
  static void residual(Samples a, ConstView f, ConstView z, View g, S* g_squared, S* f_squared,
                       BasisView<T> h, const Index* rank, S* out) {
    cuda::project<S>(
        a, BasisView<const T>(h), rank,
        [=] __device__(Index s, Index j, Index i, S(&norm)[cuda::norms]) {
          return cuda::subtract(f.col(j)[i], z.col(s)[i], g.col(s)[i], norm);
        },
        out,
        [=] __device__(Index s, Index k, S sum) { (k == 0 ? g_squared : f_squared)[s] = sum; });
  }
  template <class T>
  static void combine(Samples a, BasisView<T> h, const Index* rank, const S* coefficient, S alpha,
                      ConstView x, View y) {
    cuda::combine<S>(
        a, BasisView<const T>(h), rank, coefficient,
        [=] __device__(Index s, Index i) { return alpha * x.col(s)[i]; },
        [=] __device__(Index s, Index i, S sum) { return y.col(s)[i] = sum; },
        static_cast<S*>(nullptr));
  }
  template <class T>
  static void extend(Samples a, BasisView<T> h, const Index* rank, const S* coefficient,
                     const S* alpha, ConstView x, const Index* slot, View z, S* squared) {
    cuda::combine<S>(
        a, BasisView<const T>(h), rank, coefficient,
        [=] __device__(Index s, Index i) {
          return alpha[s] == S(0) ? S(0) : alpha[s] * x.col(s)[i];
        },
        [=] __device__(Index s, Index i, S y) {
          const T stored = T(y);  // the vector is what is stored of it
          y = static_cast<S>(stored);
          if (z.data) z.col(s)[i] += y;
          if (slot[s] >= 0) h.vec(s, slot[s])[i] = stored;
          return y;
        },
        squared);
  }
  static void store(Samples a, const S* alpha, ConstView x, Basis h, const Index* slot) {
    cuda::for_each_number(a, h.dim, [=] __device__(Index s, Index, Index i) {
      // 0 * x must be 0 even where x is not finite: that is how a pair is left out.
      if (slot[s] >= 0) h.vec(s, slot[s])[i] = alpha[s] == S(0) ? S(0) : alpha[s] * x.col(s)[i];
    });
  }
  static void accumulate(Samples a, const S* alpha, ConstBasis h, const Index* slot, View y) {
    cuda::for_each_number(a, h.dim, [=] __device__(Index s, Index, Index i) {
      if (alpha[s] != S(0)) y.col(s)[i] += alpha[s] * h.vec(s, slot[s])[i];
    });
  }
  static void rotate(Samples a, Basis h, Index v, const S* cosine, const S* sine) {
    cuda::for_each_number(a, h.dim, [=] __device__(Index s, Index, Index i) {
      const S c = cosine[s], t = sine[s];
      S& p = h.vec(s, v)[i];
      S& q = h.vec(s, v + 1)[i];
      const S p0 = p;
      p = c * p0 + t * q;
      q = c * q - t * p0;
    });
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
