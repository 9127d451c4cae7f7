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
    over(a, whole.dim, whole.dim, [=](Index s, Index j, Index first, Index n) {
      copy_numbers(whole.col(s) + first, compact.col(j) + first, n);
    });
  }
  static void scatter(Samples a, ConstView compact, View whole) {
    over(a, whole.dim, whole.dim, [=](Index s, Index j, Index first, Index n) {
      copy_numbers(compact.col(j) + first, whole.col(s) + first, n);
    });
  }
  static void copy(Samples a, ConstView x, View y) {
    over(a, x.dim, x.dim, [=](Index s, Index, Index first, Index n) {
      copy_numbers(x.col(s) + first, y.col(s) + first, n);
    });
  }
  static void copy(Samples a, ConstView x, View y, const bool* where) {
    over(a, x.dim, x.dim, [=](Index s, Index, Index first, Index n) {
      if (where[s]) copy_numbers(x.col(s) + first, y.col(s) + first, n);
    });
  }

  static void residual(Samples a, ConstView f, ConstView z, View g, S* g_squared, S* f_squared) {
    sums_over(
        a, z.dim, z.dim, 2,
        [=](Index s, Index j, Index first, Index n, S* sums) {
          detail::subtract(f.col(j) + first, z.col(s) + first, g.col(s) + first, n, sums[0],
                           sums[1]);
        },
        [=](Index s, const S* sums) {
          g_squared[s] = sums[0];
          f_squared[s] = sums[1];
        });
  }
  static void dot(Samples a, ConstView x, ConstView y, S* out) {
    sums_over(
        a, x.dim, x.dim, 1,
        [=](Index s, Index, Index first, Index n, S* sum) {
          *sum += detail::dot(x.col(s) + first, y.col(s) + first, n);
        },
        [=](Index s, const S* sum) { out[s] = *sum; });
  }
  static void axpby(Samples a, S alpha, ConstView x, S beta, View y) {
    over(a, x.dim, x.dim, [=](Index s, Index, Index first, Index n) {
      axpby_numbers(alpha, x.col(s) + first, beta, y.col(s) + first, n);
    });
  }
  static void axpby(Samples a, const S* alpha, ConstView x, const S* beta, View y) {
    over(a, x.dim, x.dim, [=](Index s, Index, Index first, Index n) {
      axpby_numbers(alpha[s], x.col(s) + first, beta[s], y.col(s) + first, n);
    });
  }

  // A basis may be stored as S or as Bfloat16.
  template <class T>
  static void project(Samples a, BasisView<T> h, const Index* rank, ConstView x, S* out) {
    sums_over(
        a, h.dim, h.dim * std::max<Index>(h.capacity, 1), h.capacity,
        [=](Index s, Index, Index first, Index n, S* sums) {
          detail::in_panels(first, n, [&](Index start, Index size) {
            detail::add_dots(BasisView<const T>(h), s, rank[s], start, size, x.col(s) + start,
                             sums);
          });
        },
        [=](Index s, const S* sums) { std::copy_n(sums, rank[s], out + s * h.capacity); });
  }
  template <class T, class Then>
  static void residual(Samples a, ConstView f, ConstView z, View g, S* g_squared, S* f_squared,
                       BasisView<T> h, const Index* rank, S* out, Then then) {
    sums_over(
        a, h.dim, h.dim * (h.capacity + 1), h.capacity + 2,
        [=](Index s, Index j, Index first, Index n, S* sums) {
          S panel[detail::basis_panel];
          detail::in_panels(first, n, [&](Index start, Index size) {
            S* const gs = g.data ? g.col(s) + start : panel;
            detail::subtract(f.col(j) + start, z.col(s) + start, gs, size, sums[0], sums[1]);
            detail::add_dots(BasisView<const T>(h), s, rank[s], start, size, gs, sums + 2);
          });
        },
        [=](Index s, const S* sums) {
          g_squared[s] = sums[0];
          f_squared[s] = sums[1];
          std::copy_n(sums + 2, rank[s], out + s * h.capacity);
          then(s, OneThread{});
        });
  }
  template <class T>
  static void combine(Samples a, BasisView<T> h, const Index* rank, const S* coefficient, S alpha,
                      ConstView x, View y) {
    const auto add_to_chunk = [=](Index s, Index, Index from, Index count) {
      detail::in_panels(from, count, [&](Index first, Index n) {
        S* ys = y.col(s) + first;
        const S* xs = x.col(s) + first;
        if (xs != ys || alpha != S(1))
          for (Index i = 0; i < n; ++i) ys[i] = alpha * xs[i];
        detail::add_combination(BasisView<const T>(h), s, rank[s], first, n,
                                coefficient + s * h.capacity, ys);
      });
    };
    over(a, h.dim, h.dim * (h.capacity + 1), add_to_chunk, Direction::backward);
  }
  static void extend(Samples a, Basis h, const Index* rank, const S* coefficient, const S* alpha,
                     ConstView x, const Index* slot) {
    over(
        a, h.dim, h.dim * (h.capacity + 1),
        [=](Index s, Index, Index from, Index count) {
          if (slot[s] < 0) return;
          detail::in_panels(from, count, [&](Index first, Index n) {
            const S* xs = x.col(s) + first;
            S* y = h.vec(s, slot[s]) + first;
            S sum[detail::basis_panel];  // y may be one of the vectors
            const S p = alpha[s];
            for (Index i = 0; i < n; ++i) sum[i] = p == S(0) ? S(0) : p * xs[i];
            detail::add_combination(ConstBasis(h), s, rank[s], first, n,
                                    coefficient + s * h.capacity, sum);
            copy_numbers(sum, y, n);
          });
        },
        Direction::backward);
  }
  template <class T, class Then>
  static void step(Samples a, BasisView<T> h, const Index* rank, const S* coefficient,
                   const S* alpha, ConstView f, const Index* slot, View z, View best,
                   const bool* improved, S* squared, Then then) {
    sums_over(
        a, h.dim, h.dim * (h.capacity + 1), 1,
        [=](Index s, Index j, Index from, Index count, S* sum) {
          S y[detail::basis_panel];
          detail::in_panels(from, count, [&](Index first, Index n) {
            const S* fs = f.col(j) + first;
            S* zs = z.col(s) + first;
            const S p = alpha[s];
            for (Index i = 0; i < n; ++i) y[i] = p == S(0) ? S(0) : p * (fs[i] - zs[i]);
            detail::add_combination(BasisView<const T>(h), s, rank[s], first, n,
                                    coefficient + s * h.capacity, y);
            if constexpr (!std::is_same_v<S, T>)  // the vector is what is stored of it
              for (Index i = 0; i < n; ++i) y[i] = static_cast<S>(T(y[i]));
            if (improved[s]) copy_numbers(zs, best.col(s) + first, n);
            for (Index i = 0; i < n; ++i) zs[i] += y[i];
            if (slot[s] >= 0) {
              T* hs = h.vec(s, slot[s]) + first;
              for (Index i = 0; i < n; ++i) hs[i] = T(y[i]);
            }
            *sum += detail::dot(y, y, n);
          });
        },
        [=](Index s, const S* sum) {
          squared[s] = *sum;
          then(s, OneThread{});
        },
        Direction::backward);
  }
  static void store(Samples a, const S* alpha, ConstView x, Basis h, const Index* slot) {
    over(a, h.dim, h.dim, [=](Index s, Index, Index first, Index n) {
      const S p = alpha[s];
      const S* xs = x.col(s) + first;
      if (slot[s] < 0) return;
      S* hs = h.vec(s, slot[s]) + first;
      // 0 * x must be 0 even where x is not finite: that is how a pair is left out.
      if (p == S(0))
        std::fill_n(hs, n, S(0));
      else
        for (Index i = 0; i < n; ++i) hs[i] = p * xs[i];
    });
  }
  static void accumulate(Samples a, const S* alpha, ConstBasis h, const Index* slot, View y) {
    over(a, h.dim, h.dim, [=](Index s, Index, Index first, Index n) {
      const S p = alpha[s];
      if (p == S(0)) return;
      const S* hs = h.vec(s, slot[s]) + first;
      S* ys = y.col(s) + first;
      for (Index i = 0; i < n; ++i) ys[i] += p * hs[i];
    });
  }
  static void rotate(Samples a, Basis h, Index i, const S* cosine, const S* sine) {
    over(a, h.dim, h.dim, [=](Index s, Index, Index first, Index n) {
      const S c = cosine[s], t = sine[s];
      S* p = h.vec(s, i) + first;
      S* q = h.vec(s, i + 1) + first;
      for (Index k = 0; k < n; ++k) {
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
  static void copy_numbers(const S* from, S* to, Index n) {
    copy_bytes(to, from, static_cast<std::size_t>(n) * sizeof(S));
  }
  static void axpby_numbers(S p, const S* x, S q, S* y, Index n) {
    // 0 * y must be 0 even where y holds no number yet.
    if (q == S(0))
      for (Index i = 0; i < n; ++i) y[i] = p * x[i];
    else
      for (Index i = 0; i < n; ++i) y[i] = p * x[i] + q * y[i];
  }

  /// Numbers of a sample that are taken at a time, so that a team can share even a single one.
  static constexpr Index chunk = 4096;
  static Index chunks(Index dim) { return std::max<Index>(1, (dim + chunk - 1) / chunk); }

  /// In which order a thread takes the chunks of a sample it has to itself. Backward, what the
  /// forward pass before it has read last is still in a near cache. A team, whose threads each come
  /// back to chunks of their own, goes forward.
  enum class Direction { forward, backward };

  /// body(sample, position, first, n) for the numbers [first, first + n) of the active samples, in
  /// chunks; shared by the team when it is worth waking, `work` being the numbers read a sample.
  template <class Body>
  static void over(Samples a, Index dim, Index work, Body&& body,
                   Direction direction = Direction::forward) {
    const Index parts = chunks(dim);
    const bool backward =
        direction == Direction::backward && (detail::inside_parallel || num_threads() == 1);
    parallel_for(
        a.count * parts,
        [&](Index i) {
          const Index j = i / parts, part = i % parts;
          const Index first = (backward ? parts - 1 - part : part) * chunk;
          body(a[j], j, first, std::min(chunk, dim - first));
        },
        a.count * work < 32768);
  }
  /// The same for `count` sums a sample: body(sample, position, first, n, sums) adds to those of a
  /// chunk, which are added up in order, for finish(sample, sums).
  template <class Body, class Finish>
  static void sums_over(Samples a, Index dim, Index work, Index count, Body&& body, Finish&& finish,
                        Direction direction = Direction::forward) {
    const Index parts = chunks(dim);
    constexpr Index few = 128;
    if (parts == 1 && count <= few)
      return over(a, dim, work, [&](Index s, Index j, Index first, Index n) {
        S own[few];
        std::fill_n(own, count, S(0));
        body(s, j, first, n, own);
        finish(s, static_cast<const S*>(own));
      });
    const Array<Cpu> memory(a.count * parts * count);
    S* const sums = memory.data();
    over(
        a, dim, work,
        [&](Index s, Index j, Index first, Index n) {
          S* const own = sums + (j * parts + first / chunk) * count;
          std::fill_n(own, count, S(0));
          body(s, j, first, n, own);
        },
        direction);
    for (Index j = 0; j < a.count; ++j) {
      S* const total = sums + j * parts * count;
      for (Index part = 1; part < parts; ++part)
        for (Index k = 0; k < count; ++k) total[k] += total[part * count + k];
      finish(a[j], total);
    }
  }
};

static_assert(DenseBackend<Cpu<float>> && DenseBackend<Cpu<double>>);

}  // namespace deq
