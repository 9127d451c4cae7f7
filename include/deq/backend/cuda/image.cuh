// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/geometry.hpp>

namespace deq {

/// out: image j is cut j of `images`, each byte b of channel c as table[256 c + b].
template <class S>
void cut_images(Cuda<S>, const ImageGeometry& g, Index count, const ImageCut* cuts,
                const std::uint8_t* images, const S* table, S* out) {
  cuda::for_each_index(count * g.size(), [=] __device__(Index i) {
    const ImageCut& cut = cuts[i / g.size()];
    const Index c = i % g.size() / g.pixels(), pixel = i % g.pixels();
    const std::uint8_t* plane = images + cut.image * g.size() + c * g.pixels();
    out[i] = table[256 * c + cut.byte(g, plane, pixel / g.width, pixel % g.width)];
  });
}

}  // namespace deq
