// SPDX-License-Identifier: MIT
// Products with a matrix that is used again and again: its numbers are put in the order in which
// the kernel of the convolutions reads them, once.
#pragma once

#include <deq/backend/cpu/conv/packing.hpp>
#include <deq/backend/cpu/transpose.hpp>

namespace deq {

/// Numbers of op(B), k x n, packed.
template <class S>
Index gemm_packed_size(Cpu<S>, Index n, Index k) {
  return detail::packed_size<S>(k, n, 1);
}
/// Packs op(B); B is n x k if `transpose_b`, else k x n.
template <class S>
void gemm_pack(Cpu<S>, Index n, Index k, bool transpose_b, const S* b, S* packed) {
  const detail::Panels<S> panels(n);
  parallel_for(
      panels.count(),
      [&](Index p) {
        const Index first = panels.first_channel(p),
                    all = panels.width_of(p) * detail::simd_width<S>;
        const Index width = std::min(all, n - first);
        S* const panel = packed + first * k;
        if (width < all) std::fill_n(panel, all * k, S(0));
        if (transpose_b)
          detail::transpose_plane(width, k, b + first * k, k, panel, all);
        else
          for (Index i = 0; i < k; ++i) std::copy_n(b + i * n + first, width, panel + i * all);
      },
      n * k < 65536);
}

/// C (+)= A op(B), A m x k. A row of C does not depend on the numbers in the others.
template <class S>
void gemm_packed(Cpu<S>, Index m, Index n, Index k, const S* a, const S* packed, S* c,
                 bool accumulate) {
  const detail::Panels<S> panels(n);
  constexpr Index rows = 64, together = 4;
  const Index across = (panels.count() + together - 1) / together;
  const auto piece = [&](Index index) {
    const Index first = index / across * rows, count = std::min(rows, m - first);
    const Index begin = index % across * together, end = std::min(begin + together, panels.count());
    for (Index p = begin; p < end; ++p)
      detail::with_panel(panels.width_of(p), [&](auto v) {
        const Index column = panels.first_channel(p);
        const Index last = n - column - (v - 1) * detail::simd_width<S>;
        detail::for_each_block<v>(count, [&](auto r, Index row) {
          detail::Block<S, r, v> block;
          const S* of_a[r];
          for (int i = 0; i < r; ++i) of_a[i] = a + (first + row + i) * k;
          block.set_product(of_a, packed + column * k, k);
          S* const to = c + (first + row) * n + column;
          detail::unroll<r>([&](auto i) DEQ_INLINE {
            detail::unroll<v>([&](auto j) DEQ_INLINE {
              S* const y = to + i * n + j * detail::simd_width<S>;
              const Index there = j + 1 < v ? detail::simd_width<S> : last;
              detail::store(y,
                            accumulate ? detail::load(y, there) + block.sum[i][j] : block.sum[i][j],
                            there);
            });
          });
        });
      });
  };
  parallel_for((m + rows - 1) / rows * across, piece, m * n * k < 65536);
}

}  // namespace deq
