// SPDX-License-Identifier: MIT
// The one inner loop of the engine: a block of an output, held in registers, plus a product.
#pragma once

#include <algorithm>

#include <deq/backend/cpu/simd.hpp>

namespace deq::detail {

/// Vectors of output channels that a block has at most. With three, g++ reads the weights again for
/// every row and loses a quarter of the speed.
inline constexpr int max_panel = 2;
/// Rows of a block `vectors` wide at most: beside the sums the registers must hold a row of weights
/// and one factor.
constexpr int max_rows(int vectors) {
  return std::min(12, (simd_registers - vectors - 1) / vectors);
}

/// A block of R rows (pixels) by V vectors (of channels).
template <class S, int R, int V>
struct Block {
  static constexpr int rows = R, vectors = V;
  /// Terms that are summed one after the other. Longer sums are sums of such sums, which keeps the
  /// rounding of a sum of a thousand terms at that of a hundred.
  static constexpr Index run = 12;

  Simd<S> sum[R][V];

  DEQ_INLINE void clear() {
    unroll<R>([&](auto r)
                  DEQ_INLINE { unroll<V>([&](auto v) DEQ_INLINE { sum[r][v] = Simd<S>{}; }); });
  }
  /// sum_rv += sum_k a_r[k] b[k]_v, k < depth: the rows of A wherever they are, B one panel of
  /// packed weights. The order of summation does not depend on R and V.
  DEQ_INLINE void add_product(const S* const* a, const S* b, Index depth) {
    for (Index k = 0; k < depth; k += run) {
      Block part;
      part.set_run(a, k, b + k * V * simd_width<S>, std::min(run, depth - k));
      unroll<R>([&](auto r) DEQ_INLINE {
        unroll<V>([&](auto v) DEQ_INLINE { sum[r][v] += part.sum[r][v]; });
      });
    }
  }
  /// The same from sum = 0.
  DEQ_INLINE void set_product(const S* const* a, const S* b, Index depth) {
    set_run(a, 0, b, std::min(run, depth));
    if (depth <= run) return;
    const S* rest[R];
    unroll<R>([&](auto r) DEQ_INLINE { rest[r] = a[r] + run; });
    add_product(rest, b + run * V * simd_width<S>, depth - run);
  }

 private:
  DEQ_INLINE void set_run(const S* const* a, Index first, const S* b, Index n) {
    const S* row[R];
    unroll<R>([&](auto r) DEQ_INLINE { row[r] = a[r] + first; });
    clear();
    for (Index k = 0; k < n; ++k, b += V * simd_width<S>) {
      Simd<S> weights[V];
      unroll<V>([&](auto v) DEQ_INLINE { weights[v] = load(b + v * simd_width<S>); });
      unroll<R>([&](auto r) DEQ_INLINE {
        const Simd<S> x = broadcast(row[r][k]);
        unroll<V>([&](auto v) DEQ_INLINE { sum[r][v] += x * weights[v]; });
      });
    }
  }
};

/// body(constant N) for the N in [1, Max] that equals n.
template <int Max, class Body>
void with_constant(int n, Body&& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (void)((n == I + 1 && (body(std::integral_constant<int, I + 1>{}), true)) || ...);
  }
  (std::make_integer_sequence<int, Max>{});
}

/// body(R, V, first row), R and V constants, for blocks V = `vectors` wide that together have
/// `rows` rows: as few as can be, and about equally high.
template <class S, class Body>
void for_each_block(Index rows, int vectors, Body body) {
  with_constant<max_panel>(vectors, [&](auto v) {
    constexpr int highest = max_rows(v);
    const Index count = (rows + highest - 1) / highest;
    Index first = 0;
    for (Index i = 0; i < count; ++i) {
      const Index next = (i + 1) * rows / count;
      with_constant<highest>(static_cast<int>(next - first), [&](auto r) { body(r, v, first); });
      first = next;
    }
  });
}

}  // namespace deq::detail
