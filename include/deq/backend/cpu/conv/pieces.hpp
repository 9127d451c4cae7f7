// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include <deq/core/types.hpp>

namespace deq::detail {

/// A batch cut into pieces of work of about `target` units (tiles, pixels) each: several parts of
/// every sample, or several whole samples. Where a sample is cut depends on its size alone, so its
/// bits do not depend on the others.
class Pieces {
 public:
  struct Piece {
    Index first_sample, last_sample;  ///< [first, last)
    Index first, last;                ///< units of each of these samples
    Index part;
  };

  Pieces(Index samples, Index units, Index target)
      : samples_(samples),
        units_(units),
        parts_(std::max<Index>(1, (units + target - 1) / target)),
        together_(parts_ > 1 ? 1 : std::max<Index>(1, target / std::max<Index>(units, 1))) {}

  /// Parts of every sample.
  Index parts() const { return parts_; }
  Index count() const {
    return parts_ > 1 ? samples_ * parts_ : (samples_ + together_ - 1) / together_;
  }
  Piece operator[](Index i) const {
    if (parts_ == 1) return {i * together_, std::min(samples_, (i + 1) * together_), 0, units_, 0};
    const Index sample = i / parts_, part = i % parts_;
    return {sample, sample + 1, part * units_ / parts_, (part + 1) * units_ / parts_, part};
  }

 private:
  Index samples_, units_, parts_, together_;
};

}  // namespace deq::detail
