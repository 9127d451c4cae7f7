// SPDX-License-Identifier: MIT
// A second backend, written by hand: plain loops over memory from malloc, no Eigen, no threads, no
// line shared with deq::Cpu. Whatever runs on it names no backend. It is also the shortest answer
// to "what does a backend have to provide?".
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include <deq/backend/concept.hpp>
#include <deq/backend/host_work.hpp>

namespace deq_test {

template <class S>
struct NaiveBackend : deq::HostWork {
  using Scalar = S;
  using Index = deq::Index;
  using Samples = deq::Samples;
  using View = deq::BatchView<S>;
  using ConstView = deq::BatchView<const S>;
  using Basis = deq::BasisView<S>;
  using ConstBasis = deq::BasisView<const S>;

  /// Blocks that have been allocated and not yet given back.
  static inline long live_blocks = 0;

  /// Memory full of NaNs (and of the index -1): reading it before writing it shows in the results.
  static void* allocate(std::size_t bytes) {
    void* block = std::malloc(bytes);
    if (!block) throw std::bad_alloc();
    std::memset(block, 0xff, bytes);
    ++live_blocks;
    return block;
  }
  static void deallocate(void* block, std::size_t) noexcept {
    std::free(block);
    --live_blocks;
  }
  static void copy_bytes(void* to, const void* from, std::size_t bytes) {
    if (bytes > 0) std::memmove(to, from, bytes);
  }
  static void upload_bytes(void* to, const void* from, std::size_t bytes) {
    copy_bytes(to, from, bytes);
  }
  static void download_bytes(void* to, const void* from, std::size_t bytes) {
    copy_bytes(to, from, bytes);
  }

  static void fill(S* x, Index n, S value) {
    for (Index i = 0; i < n; ++i) x[i] = value;
  }
  static void gather(Samples a, ConstView whole, View compact) {
    for (Index j = 0; j < a.count; ++j)
      for (Index i = 0; i < whole.dim; ++i) compact.col(j)[i] = whole.col(a[j])[i];
  }
  static void scatter(Samples a, ConstView compact, View whole) {
    for (Index j = 0; j < a.count; ++j)
      for (Index i = 0; i < whole.dim; ++i) whole.col(a[j])[i] = compact.col(j)[i];
  }
  static void copy(Samples a, ConstView x, View y) {
    for (Index j = 0; j < a.count; ++j)
      for (Index i = 0; i < x.dim; ++i) y.col(a[j])[i] = x.col(a[j])[i];
  }
  static void copy(Samples a, ConstView x, View y, const bool* where) {
    for (Index j = 0; j < a.count; ++j)
      if (where[a[j]]) copy({a.id + j, 1}, x, y);
  }

  static void residual(Samples a, ConstView f, ConstView z, View g, S* g_squared, S* f_squared) {
    for (Index j = 0; j < a.count; ++j) {
      S gg = 0, ff = 0;
      for (Index i = 0; i < z.dim; ++i) {
        const S fi = f.col(j)[i], gi = fi - z.col(a[j])[i];
        g.col(a[j])[i] = gi;
        gg += gi * gi;
        ff += fi * fi;
      }
      g_squared[a[j]] = gg;
      f_squared[a[j]] = ff;
    }
  }
  static void dot(Samples a, ConstView x, ConstView y, S* out) {
    for (Index j = 0; j < a.count; ++j) out[a[j]] = dot(x.col(a[j]), y.col(a[j]), x.dim);
  }
  static void axpby(Samples a, S alpha, ConstView x, S beta, View y) {
    for (Index j = 0; j < a.count; ++j) axpby(alpha, x.col(a[j]), beta, y.col(a[j]), x.dim);
  }
  static void axpby(Samples a, const S* alpha, ConstView x, const S* beta, View y) {
    for (Index j = 0; j < a.count; ++j)
      axpby(alpha[a[j]], x.col(a[j]), beta[a[j]], y.col(a[j]), x.dim);
  }

  template <class T>
  static void project(Samples a, deq::BasisView<T> h, const Index* rank, ConstView x, S* out) {
    for (Index j = 0; j < a.count; ++j)
      for (Index i = 0; i < rank[a[j]]; ++i)
        out[a[j] * h.capacity + i] = dot(h.vec(a[j], i), x.col(a[j]), h.dim);
  }
  template <class T, class Then>
  static void residual(Samples a, ConstView f, ConstView z, View g, S* g_squared, S* f_squared,
                       deq::BasisView<T> h, const Index* rank, S* out, Then then) {
    std::vector<S> apart;  // where none is asked for
    if (!g.data) {
      apart.resize(static_cast<std::size_t>(z.dim * z.count));
      g = {apart.data(), z.dim, z.count};
    }
    residual(a, f, z, g, g_squared, f_squared);
    project(a, h, rank, g, out);
    for_each_team(a, then);
  }
  template <class T>
  static void combine(Samples a, deq::BasisView<T> h, const Index* rank, const S* coefficient,
                      S alpha, ConstView x, View y) {
    for (Index j = 0; j < a.count; ++j)
      for (Index k = 0; k < h.dim; ++k) {
        S sum = alpha * x.col(a[j])[k];
        for (Index i = 0; i < rank[a[j]]; ++i)
          sum += coefficient[a[j] * h.capacity + i] * static_cast<S>(h.vec(a[j], i)[k]);
        y.col(a[j])[k] = sum;
      }
  }
  static void extend(Samples a, Basis h, const Index* rank, const S* coefficient, const S* alpha,
                     ConstView x, const Index* slot) {
    for (Index j = 0; j < a.count; ++j)
      for (Index k = 0; k < h.dim; ++k) {
        const Index s = a[j];
        const S y = combined(h, rank, coefficient, alpha, s, k, x.col(s)[k]);
        if (slot[s] >= 0) h.vec(s, slot[s])[k] = y;
      }
  }
  template <class T, class Then>
  static void step(Samples a, deq::BasisView<T> h, const Index* rank, const S* coefficient,
                   const S* alpha, ConstView f, const Index* slot, View z, View best,
                   const bool* improved, S* squared, Then then) {
    for (Index j = 0; j < a.count; ++j) {
      const Index s = a[j];
      squared[s] = 0;
      for (Index k = 0; k < h.dim; ++k) {
        S& number = z.col(s)[k];
        const T stored = T(combined(h, rank, coefficient, alpha, s, k, f.col(j)[k] - number));
        const S y = static_cast<S>(stored);
        if (slot[s] >= 0) h.vec(s, slot[s])[k] = stored;
        if (improved[s]) best.col(s)[k] = number;
        number += y;
        squared[s] += y * y;
      }
      then(s, OneThread{});
    }
  }
  static void store(Samples a, const S* alpha, ConstView x, Basis h, const Index* slot) {
    for (Index j = 0; j < a.count; ++j)
      for (Index i = 0; i < h.dim; ++i)
        if (slot[a[j]] >= 0)
          h.vec(a[j], slot[a[j]])[i] = alpha[a[j]] == S(0) ? S(0) : alpha[a[j]] * x.col(a[j])[i];
  }
  static void accumulate(Samples a, const S* alpha, ConstBasis h, const Index* slot, View y) {
    for (Index j = 0; j < a.count; ++j)
      if (alpha[a[j]] != S(0))
        axpby(alpha[a[j]], h.vec(a[j], slot[a[j]]), S(1), y.col(a[j]), h.dim);
  }
  static void rotate(Samples a, Basis h, Index i, const S* cosine, const S* sine) {
    for (Index j = 0; j < a.count; ++j)
      for (Index k = 0; k < h.dim; ++k) {
        S& p = h.vec(a[j], i)[k];
        S& q = h.vec(a[j], i + 1)[k];
        const S p0 = p;
        p = cosine[a[j]] * p0 + sine[a[j]] * q;
        q = cosine[a[j]] * q - sine[a[j]] * p0;
      }
  }

  template <class Function>
  static void in_blocks(Index count, Index, Function&& function) {
    for (Index i = 0; i < count; ++i) function(i, Index{1});
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

  /// Gaussian elimination with row pivoting.
  static void solve_dense(Index n, S* matrix, S* rhs) {
    const auto at = [=](Index i, Index j) -> S& { return matrix[i + j * n]; };
    for (Index k = 0; k < n; ++k) {
      Index pivot = k;
      for (Index i = k + 1; i < n; ++i)
        if (std::abs(at(i, k)) > std::abs(at(pivot, k))) pivot = i;
      for (Index j = k; j < n; ++j) std::swap(at(k, j), at(pivot, j));
      std::swap(rhs[k], rhs[pivot]);
      for (Index i = k + 1; i < n; ++i) {
        const S factor = at(i, k) / at(k, k);
        for (Index j = k; j < n; ++j) at(i, j) -= factor * at(k, j);
        rhs[i] -= factor * rhs[k];
      }
    }
    for (Index k = n - 1; k >= 0; --k) {
      for (Index j = k + 1; j < n; ++j) rhs[k] -= at(k, j) * rhs[j];
      rhs[k] /= at(k, k);
    }
  }

 private:
  /// Number k of alpha_s x_s + sum_i coefficient_s,i h_s,i.
  template <class T>
  static S combined(deq::BasisView<T> h, const Index* rank, const S* coefficient, const S* alpha,
                    Index s, Index k, S x) {
    S y = alpha[s] == S(0) ? S(0) : alpha[s] * x;
    for (Index i = 0; i < rank[s]; ++i)
      y += coefficient[s * h.capacity + i] * static_cast<S>(h.vec(s, i)[k]);
    return y;
  }
  template <class T>
  static S dot(const T* x, const S* y, Index n) {
    S sum = 0;
    for (Index i = 0; i < n; ++i) sum += static_cast<S>(x[i]) * y[i];
    return sum;
  }
  static void axpby(S alpha, const S* x, S beta, S* y, Index n) {
    for (Index i = 0; i < n; ++i) y[i] = beta == S(0) ? alpha * x[i] : alpha * x[i] + beta * y[i];
  }
};

static_assert(deq::Backend<NaiveBackend<float>> && deq::Backend<NaiveBackend<double>>);
static_assert(deq::DenseBackend<NaiveBackend<double>>);

}  // namespace deq_test
