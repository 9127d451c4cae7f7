// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstring>

#include <Eigen/Core>
#include <Eigen/LU>

#include <deq/backend/array.hpp>
#include <deq/backend/concept.hpp>
#include <deq/backend/cpu/basis.hpp>
#include <deq/backend/cpu/lanes.hpp>
#include <deq/backend/host_work.hpp>
#include <deq/core/host_pool.hpp>
#include <deq/core/parallel.hpp>

namespace deq {

/// The CPU backend: host memory from a pool, loops over samples shared by the thread team, dense
/// algebra by Eigen. See backend/concept.hpp for what each primitive computes.
template <class S>
struct Cpu : HostWork {
  using Scalar = S;
  using View = BatchView<S>;
  using ConstView = BatchView<const S>;
  using Basis = BasisView<S>;
  using ConstBasis = BasisView<const S>;

  static void* allocate(std::size_t bytes) { return HostPool::instance().acquire(bytes); }
  static void deallocate(void* p, std::size_t bytes) noexcept {
    HostPool::instance().release(p, bytes);
  }
  static void copy_bytes(void* to, const void* from, std::size_t bytes) {
    if (bytes) std::memcpy(to, from, bytes);
  }
  static void upload_bytes(void* to, const void* from, std::size_t bytes) {
    copy_bytes(to, from, bytes);
  }
  static void download_bytes(void* to, const void* from, std::size_t bytes) {
    copy_bytes(to, from, bytes);
  }

  static void fill(S* x, Index n, S value) { std::fill_n(x, n, value); }

  static void gather(Samples a, ConstView whole, View compact) {
    over(a, whole.dim,
         [=](Index s, Index j) { copy_column(whole.col(s), compact.col(j), whole.dim); });
  }
  static void scatter(Samples a, ConstView compact, View whole) {
    over(a, whole.dim,
         [=](Index s, Index j) { copy_column(compact.col(j), whole.col(s), whole.dim); });
  }
  static void copy(Samples a, ConstView x, View y) {
    over(a, x.dim, [=](Index s, Index) { copy_column(x.col(s), y.col(s), x.dim); });
  }

  static void residual(Samples a, ConstView f, ConstView z, View g, S* g_squared, S* f_squared) {
    over(a, z.dim, [=](Index s, Index j) {
      const S* fj = f.col(j);
      const S* zs = z.col(s);
      S* gs = g.col(s);
      for (Index i = 0; i < z.dim; ++i) gs[i] = fj[i] - zs[i];
      g_squared[s] = detail::dot(gs, gs, z.dim);
      f_squared[s] = detail::dot(fj, fj, z.dim);
    });
  }
  static void dot(Samples a, ConstView x, ConstView y, S* out) {
    over(a, x.dim, [=](Index s, Index) { out[s] = detail::dot(x.col(s), y.col(s), x.dim); });
  }
  static void axpby(Samples a, S alpha, ConstView x, S beta, View y) {
    over(a, x.dim, [=](Index s, Index) { axpby_column(alpha, x.col(s), beta, y.col(s), x.dim); });
  }
  static void axpby(Samples a, const S* alpha, ConstView x, const S* beta, View y) {
    over(a, x.dim,
         [=](Index s, Index) { axpby_column(alpha[s], x.col(s), beta[s], y.col(s), x.dim); });
  }

  // A basis may be stored as S or as Bfloat16.
  template <class T>
  static void project(Samples a, BasisView<T> h, const Index* rank, ConstView x, S* out) {
    over(a, h.dim * std::max<Index>(h.capacity, 1), [=](Index s, Index) {
      S* c = out + s * h.capacity;
      std::fill_n(c, rank[s], S(0));
      detail::in_panels(h.dim, [&](Index first, Index n) {
        detail::add_dots(BasisView<const T>(h), s, rank[s], first, n, x.col(s) + first, c);
      });
    });
  }
  template <class T>
  static void residual(Samples a, ConstView f, ConstView z, View g, S* g_squared, S* f_squared,
                       BasisView<T> h, const Index* rank, S* out) {
    over(a, h.dim * (h.capacity + 1), [=](Index s, Index j) {
      S* c = out + s * h.capacity;
      std::fill_n(c, rank[s], S(0));
      S gg = 0, ff = 0;
      detail::in_panels(h.dim, [&](Index first, Index n) {
        S* gs = g.col(s) + first;
        detail::subtract(f.col(j) + first, z.col(s) + first, gs, n, gg, ff);
        detail::add_dots(BasisView<const T>(h), s, rank[s], first, n, gs, c);
      });
      g_squared[s] = gg;
      f_squared[s] = ff;
    });
  }
  template <class T>
  static void combine(Samples a, BasisView<T> h, const Index* rank, const S* coefficient, S alpha,
                      ConstView x, View y) {
    over(a, h.dim * (h.capacity + 1), [=](Index s, Index) {
      detail::in_panels(h.dim, [&](Index first, Index n) {
        S* ys = y.col(s) + first;
        const S* xs = x.col(s) + first;
        if (xs != ys || alpha != S(1))
          for (Index i = 0; i < n; ++i) ys[i] = alpha * xs[i];
        detail::add_combination(BasisView<const T>(h), s, rank[s], first, n,
                                coefficient + s * h.capacity, ys);
      });
    });
  }
  template <class T>
  static void extend(Samples a, BasisView<T> h, const Index* rank, const S* coefficient,
                     const S* alpha, ConstView x, const Index* slot, View z, S* squared) {
    over(a, h.dim * (h.capacity + 1), [=](Index s, Index) {
      S y[detail::basis_panel];
      S yy = 0;
      detail::in_panels(h.dim, [&](Index first, Index n) {
        const S* xs = x.col(s) + first;
        const S p = alpha[s];
        for (Index i = 0; i < n; ++i) y[i] = p == S(0) ? S(0) : p * xs[i];
        detail::add_combination(BasisView<const T>(h), s, rank[s], first, n,
                                coefficient + s * h.capacity, y);
        if constexpr (!std::is_same_v<S, T>)  // the vector is what is stored of it
          for (Index i = 0; i < n; ++i) y[i] = static_cast<S>(T(y[i]));
        if (z.data) {
          S* zs = z.col(s) + first;
          for (Index i = 0; i < n; ++i) zs[i] += y[i];
        }
        if (slot[s] >= 0) {
          T* hs = h.vec(s, slot[s]) + first;
          for (Index i = 0; i < n; ++i) hs[i] = T(y[i]);
        }
        yy += detail::dot(y, y, n);
      });
      squared[s] = yy;
    });
  }
  static void store(Samples a, const S* alpha, ConstView x, Basis h, const Index* slot) {
    over(a, h.dim, [=](Index s, Index) {
      const S p = alpha[s];
      const S* xs = x.col(s);
      if (slot[s] < 0) return;
      S* hs = h.vec(s, slot[s]);
      // 0 * x must be 0 even where x is not finite: that is how a pair is left out.
      if (p == S(0))
        std::fill_n(hs, h.dim, S(0));
      else
        for (Index i = 0; i < h.dim; ++i) hs[i] = p * xs[i];
    });
  }
  static void accumulate(Samples a, const S* alpha, ConstBasis h, const Index* slot, View y) {
    over(a, h.dim, [=](Index s, Index) {
      const S p = alpha[s];
      if (p == S(0)) return;
      const S* hs = h.vec(s, slot[s]);
      S* ys = y.col(s);
      for (Index i = 0; i < h.dim; ++i) ys[i] += p * hs[i];
    });
  }
  static void rotate(Samples a, Basis h, Index i, const S* cosine, const S* sine) {
    over(a, h.dim, [=](Index s, Index) {
      const S c = cosine[s], t = sine[s];
      S* p = h.vec(s, i);
      S* q = h.vec(s, i + 1);
      for (Index k = 0; k < h.dim; ++k) {
        const S pk = p[k];
        p[k] = c * pk + t * q[k];
        q[k] = c * q[k] - t * pk;
      }
    });
  }

  /// Blocks of 16384 numbers or so: what one block reads twice comes from a near cache the second
  /// time.
  template <class Function>
  static void in_blocks(Index count, Index work, Function&& function) {
    if (count * work < 65536) return function(Index{0}, count);
    const Index block = std::max<Index>(1, 16384 / work);
    parallel_for((count + block - 1) / block,
                 [&](Index b) { function(b * block, std::min(block, count - b * block)); });
  }
  template <class Function>
  static void for_each(Samples a, Function&& function) {
    for (Index j = 0; j < a.count; ++j) function(a[j]);
  }
  template <class Predicate>
  static Samples filter(Samples a, Predicate&& keep, Index* kept) {
    Index n = 0;
    for (Index j = 0; j < a.count; ++j)
      if (keep(a[j])) kept[n++] = a[j];
    return {kept, n};
  }

  static void solve_dense(Index n, S* matrix, S* rhs) {
    using Matrix = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic>;
    using Vector = Eigen::Matrix<S, Eigen::Dynamic, 1>;
    Eigen::Map<Vector> b(rhs, n);
    b = Eigen::Map<Matrix>(matrix, n, n).partialPivLu().solve(Vector(b));
  }

 private:
  static void copy_column(const S* from, S* to, Index n) {
    std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(S));
  }
  static void axpby_column(S p, const S* x, S q, S* y, Index n) {
    // 0 * y must be 0 even where y holds no number yet.
    if (q == S(0))
      for (Index i = 0; i < n; ++i) y[i] = p * x[i];
    else
      for (Index i = 0; i < n; ++i) y[i] = p * x[i] + q * y[i];
  }
  /// body(sample, position) over the active samples; shared by the team when it is worth waking.
  template <class Body>
  static void over(Samples a, Index work, Body&& body) {
    parallel_for(
        a.count, [&](Index j) { body(a[j], j); }, a.count * work < 32768);
  }
};

static_assert(DenseBackend<Cpu<float>> && DenseBackend<Cpu<double>>);

}  // namespace deq
