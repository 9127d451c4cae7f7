// SPDX-License-Identifier: MIT
// How images lie in memory. The engine works on channels-last images: the channels of a pixel are
// neighbours, so that they are what a vector holds, whatever the resolution.
#pragma once

#include <deq/backend/cpu/cpu.hpp>
#include <deq/backend/cpu/transpose.hpp>
#include <deq/backend/geometry.hpp>

namespace deq::detail {

/// Where a channels-last image has a pixel; one that lies outside is all zeros.
template <class S>
class Pixels {
 public:
  Pixels(const S* image, Index height, Index width, Index channels, const S* zeros)
      : image_(image), zeros_(zeros), height_(height), width_(width), channels_(channels) {}

  const S* at(Index line, Index column) const {
    // Unsigned, what is below 0 is beyond the end as well.
    const bool inside = static_cast<std::size_t>(line) < static_cast<std::size_t>(height_) &&
                        static_cast<std::size_t>(column) < static_cast<std::size_t>(width_);
    return inside ? image_ + (line * width_ + column) * channels_ : zeros_;
  }

 private:
  const S* image_;
  const S* zeros_;
  Index height_, width_, channels_;
};

}  // namespace deq::detail
