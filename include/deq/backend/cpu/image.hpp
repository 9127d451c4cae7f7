// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include <deq/backend/cpu/cpu.hpp>
#include <deq/backend/geometry.hpp>

namespace deq {

/// out: image j is cut j of `images`, each byte b of channel c as table[256 c + b].
template <class S>
void cut_images(Cpu<S>, const ImageGeometry& g, Index count, const ImageCut* cuts,
                const std::uint8_t* images, const S* table, S* out) {
  parallel_for(
      count,
      [=](Index j) {
        const ImageCut cut = cuts[j];
        S* to = out + j * g.size();
        for (Index c = 0; c < g.channels; ++c) {
          const std::uint8_t* plane = images + cut.image * g.size() + c * g.pixels();
          for (Index y = 0; y < g.height; ++y)
            for (Index x = 0; x < g.width; ++x) *to++ = table[256 * c + cut.byte(g, plane, y, x)];
        }
      },
      count * g.size() < 32768);
}

}  // namespace deq
