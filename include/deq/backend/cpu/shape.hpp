// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backend/cpu/cpu.hpp>
#include <deq/backend/cpu/transpose.hpp>
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

/// y (cols x rows) (+)= x^T, x (rows x cols).
template <class S>
void transpose_matrix(Cpu<S>, Index rows, Index cols, const S* x, S* y, bool accumulate) {
  constexpr Index block = 32;
  parallel_for((rows + block - 1) / block,
               [=](Index piece) {
                 const Index first = piece * block;
                 detail::transpose_plane(std::min(block, rows - first), cols, x + first * cols,
                                         cols, y + first, rows, accumulate);
               },
               rows * cols < 65536);
}

}  // namespace deq
