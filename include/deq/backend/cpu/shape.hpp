// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backend/cpu/cpu.hpp>
#include <deq/backend/geometry.hpp>

namespace deq {

/// to_i (+)= from_i for every strip i.
template <class S>
void copy_strips(Cpu<S>, const StripGeometry& g, const S* from, S* to, bool accumulate) {
  parallel_for(
      g.count,
      [=](Index strip) {
        const S* source = from + strip * g.from_stride;
        S* target = to + strip * g.to_stride;
        if (accumulate)
          for (Index i = 0; i < g.length; ++i) target[i] += source[i];
        else
          std::copy_n(source, g.length, target);
      },
      g.count * g.length < 65536);
}

/// y (cols x rows) (+)= x^T, x (rows x cols); in tiles that fit in the first-level cache.
template <class S>
void transpose_matrix(Cpu<S>, Index rows, Index cols, const S* x, S* y, bool accumulate) {
  constexpr Index tile = 32;
  parallel_for((rows + tile - 1) / tile,
               [=](Index piece) {
                 const Index end = std::min(rows, (piece + 1) * tile);
                 for (Index first = 0; first < cols; first += tile)
                   for (Index i = piece * tile; i < end; ++i)
                     for (Index j = first; j < std::min(cols, first + tile); ++j)
                       y[j * rows + i] = x[i * cols + j] + (accumulate ? y[j * rows + i] : S(0));
               },
               rows * cols < 65536);
}

}  // namespace deq
