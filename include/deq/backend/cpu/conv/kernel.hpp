// SPDX-License-Identifier: MIT
// The one inner loop of the engine: a block of an output, held in registers, plus a product.
#pragma once

#include <algorithm>

#include <deq/backend/cpu/simd.hpp>

namespace deq::detail {

/// Vectors of output channels that a block has at most.
inline constexpr int max_panel = 3;
/// Rows of a block of products `vectors` wide at most, and of one of outer products: beside the
/// sums the registers must hold a row of weights and one factor. Eight rows feed the units; outer
/// products, whose sums begin and end in memory, gain by more.
inline constexpr int max_product_rows = 8, max_outer_rows = 12;
constexpr int max_rows(int vectors, int most = max_product_rows) {
  return std::min(most, (simd_registers - vectors - 1) / vectors);
}

/// Numbers of a packed weight for every input channel, in so many vectors, which may be paired.
template <class S>
constexpr Index packed_numbers(int vectors, bool paired) {
  return vectors * simd_width<S> / (paired ? 2 : 1);
}

/// What a panel of V vectors of output channels is multiplied with. A panel of a vector and a half
/// is paired, unless the number of input channels is odd: a vector then holds the weights of half
/// as many output channels for two input channels, one beside the other, and three of them do the
/// work of four.
template <int V, bool is_paired = false>
struct PanelShape {
  static constexpr bool paired = is_paired;
  static constexpr int sums = paired ? 3 : V;  ///< vectors of sums of a row
  constexpr operator int() const { return V; }
};

/// Where a paired vector has its weights: the output channel of a number in vector v of the three,
/// and which of the two input channels it is for. The sums over both fold into vectors in order by
/// shuffles within 128 bits.
template <class S>
constexpr Index paired_channel(int v, Index i) {
  return v < 2 ? i / 4 * 4 + 2 * v + i % 4 / 2 : simd_width<S> + i / 4 * 2 + i % 4 / 2;
}
constexpr Index paired_input(Index i) { return i % 2; }

/// A block of R rows (pixels) by V vectors (of channels), or by V paired ones.
template <class S, int R, int V, bool paired = false>
struct Block {
  static constexpr int rows = R, vectors = V;
  static constexpr Index numbers = packed_numbers<S>(V, paired);
  /// Terms that are summed one after the other. Longer sums are sums of such sums, which keeps the
  /// rounding of a sum of a thousand terms at that of a hundred.
  static constexpr Index run = 32;
  /// Rows of weights between the one in use and the one that is fetched, which is in a second-level
  /// cache or farther away. Low blocks fetch nothing: they come after a high one with the same
  /// weights.
  static constexpr Index ahead = 24;
  static constexpr bool fetches = R >= 4;

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
      part.set_run(a, k, b + k * numbers, std::min(run, depth - k));
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
    add_product(rest, b + run * numbers, depth - run);
  }

  /// The sums, folded if they are paired.
  DEQ_INLINE decltype(auto) folded() const {
    if constexpr (paired) {
      static_assert(V == 3);
      Block<S, R, 2> done;
      unroll<R>([&](auto r) DEQ_INLINE {
        done.sum[r][0] = fold<S>(sum[r][0], sum[r][1]);
        done.sum[r][1] = first_halves<S>(fold<S>(sum[r][2], sum[r][2]));
      });
      return done;
    } else {
      return (*this);
    }
  }

  /// sum_rv += sum_t a_t[r] b_tv, t < n: a column of A^T and a row of B, each at its distance from
  /// the next one. `last` is the width of the last vector.
  template <class Width>
  DEQ_INLINE void add_outer(const S* a, Index a_step, const S* b, Index b_step, Index n,
                            Width last) {
    for (Index t = 0; t < n; ++t, a += a_step, b += b_step) {
      Simd<S> row[V];
      unroll<V - 1>([&](auto v) DEQ_INLINE { row[v] = load(b + v * simd_width<S>); });
      row[V - 1] = load(b + (V - 1) * simd_width<S>, last);
      unroll<V>([&](auto v) DEQ_INLINE { hold(row[v]); });
      unroll<R>([&](auto r) DEQ_INLINE {
        const Simd<S> x = broadcast(a[r]);
        unroll<V>([&](auto v) DEQ_INLINE { sum[r][v] += x * row[v]; });
      });
    }
  }
  /// Writes the block to a matrix in memory, whose rows are `step` apart, or adds it to that.
  DEQ_INLINE void write_to(S* y, Index step, bool accumulate) const {
    unroll<R>([&](auto r) DEQ_INLINE {
      unroll<V>([&](auto v) DEQ_INLINE {
        S* to = y + r * step + v * simd_width<S>;
        store(to, accumulate ? load(to) + sum[r][v] : sum[r][v]);
      });
    });
  }

 private:
  DEQ_INLINE void set_run(const S* const* a, Index first, const S* b, Index n) {
    const S* row[R];
    unroll<R>([&](auto r) DEQ_INLINE { row[r] = a[r] + first; });
    clear();
    for (Index k = 0; k < n; k += paired ? 2 : 1, b += V * simd_width<S>) {
      // For some processors g++ makes no fused multiply-adds of a single chain of them, unless it
      // cannot see the chain. The bits of a row must not depend on how many rows there are.
      if constexpr (R * V == 1) hold(sum[0][0]);
      Simd<S> weights[V];
      unroll<V>([&](auto v) DEQ_INLINE {
        weights[v] = load(b + v * simd_width<S>);
        hold(weights[v]);
        if constexpr (fetches) __builtin_prefetch(b + ahead * numbers + v * simd_width<S>);
      });
      unroll<R>([&](auto r) DEQ_INLINE {
        Simd<S> x;
        if constexpr (paired)
          x = broadcast_pair(row[r] + k);
        else
          x = broadcast(row[r][k]);
        unroll<V>([&](auto v) DEQ_INLINE { sum[r][v] += x * weights[v]; });
      });
    }
  }
};

/// body(PanelShape) for a panel of so many vectors.
template <class Body>
DEQ_INLINE inline void with_panel(int vectors, Body&& body) {
  static_assert(max_panel == 3);
  if (vectors == 1)
    body(PanelShape<1>{});
  else if (vectors == 2)
    body(PanelShape<2>{});
  else
    body(PanelShape<3>{});
}

/// body(R, first row), R a constant, for blocks `vectors` wide that together have `rows` rows. Few
/// heights occur, since every one of them is code of its own.
template <int vectors, int most = max_product_rows, class Body>
void for_each_block(Index rows, Body&& body) {
  Index first = 0;
  const auto of_height = [&](auto height) {
    if constexpr (height <= max_rows(vectors, most))
      for (; rows - first >= height; first += height) body(height, first);
  };
  [&]<int... R>(std::integer_sequence<int, R...>) {
    (of_height(std::integral_constant<int, R>{}), ...);
  }
  (std::integer_sequence<int, 12, 8, 6, 4, 2, 1>{});
}

}  // namespace deq::detail
