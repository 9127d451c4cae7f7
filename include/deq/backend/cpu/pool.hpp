// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backend/cpu/cpu.hpp>
#include <deq/backend/geometry.hpp>

namespace deq {

/// large (+)= scale * small, every small pixel repeated to a square.
template <class S>
void spread_pixels(Cpu<S>, const PoolGeometry& g, S scale, const S* small, S* large,
                   bool accumulate) {
  const Index width = g.width * g.factor;
  parallel_for(
      g.planes * g.height,
      [=](Index row) {
        const S* from = small + row * g.width;
        for (Index i = 0; i < g.factor; ++i) {
          S* to = large + (row * g.factor + i) * width;
          for (Index x = 0; x < g.width; ++x)
            for (Index j = 0; j < g.factor; ++j) {
              S& pixel = to[x * g.factor + j];
              pixel = accumulate ? pixel + scale * from[x] : scale * from[x];
            }
        }
      },
      g.planes * g.height * width * g.factor < 65536);
}

/// small (+)= scale * the sum of large over each square.
template <class S>
void collect_pixels(Cpu<S>, const PoolGeometry& g, S scale, const S* large, S* small,
                    bool accumulate) {
  const Index width = g.width * g.factor;
  parallel_for(
      g.planes * g.height,
      [=](Index row) {
        const S* from = large + row * g.factor * width;
        for (Index x = 0; x < g.width; ++x) {
          S sum = 0;
          for (Index i = 0; i < g.factor; ++i)
            for (Index j = 0; j < g.factor; ++j) sum += from[i * width + x * g.factor + j];
          S& pixel = small[row * g.width + x];
          pixel = accumulate ? pixel + scale * sum : scale * sum;
        }
      },
      g.planes * g.height * width * g.factor < 65536);
}

}  // namespace deq
