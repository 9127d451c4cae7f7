// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/cuda/pointwise.cuh>
#include <deq/backend/geometry.hpp>

namespace deq {

/// large (+)= scale * small, every small pixel repeated to a square.
template <class S>
void spread_pixels(Cuda<S>, const PoolGeometry& g, S scale, const S* small, S* large,
                   bool accumulate) {
  const Index width = g.width * g.factor;
  cuda::for_each_index(g.planes * g.height * g.factor * width, [=] __device__(Index i) {
    const Index line = i / width / g.factor, x = i % width / g.factor;
    cuda::put(large[i], scale * small[line * g.width + x], accumulate);
  });
}

/// small (+)= scale * the sum of large over each square.
template <class S>
void collect_pixels(Cuda<S>, const PoolGeometry& g, S scale, const S* large, S* small,
                    bool accumulate) {
  const Index width = g.width * g.factor;
  cuda::for_each_index(g.planes * g.height * g.width, [=] __device__(Index pixel) {
    const S* square = large + pixel / g.width * g.factor * width + pixel % g.width * g.factor;
    S sum = 0;
    for (Index i = 0; i < g.factor; ++i)
      for (Index j = 0; j < g.factor; ++j) sum += square[i * width + j];
    cuda::put(small[pixel], scale * sum, accumulate);
  });
}

}  // namespace deq
