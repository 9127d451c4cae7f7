// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include <deq/core/config.hpp>
#include <deq/core/types.hpp>

namespace deq::cuda {

/// Divides numbers in [0, 2^31) by one that the host knows: by a product, as a device has no
/// instruction that divides (Granlund and Montgomery, 1994).
class Divisor {
 public:
  /// By d > 0.
  explicit Divisor(int d) : divisor_(d) {
    while ((Index{1} << (shift_ - 31)) < d) ++shift_;
    factor_ = static_cast<unsigned>((std::uint64_t{1} << shift_) / static_cast<unsigned>(d) + 1);
  }
  DEQ_HOST_DEVICE int quotient(int n) const {
    return static_cast<int>(std::uint64_t{static_cast<unsigned>(n)} * factor_ >> shift_);
  }
  DEQ_HOST_DEVICE int remainder(int n) const { return n - quotient(n) * divisor_; }

 private:
  int divisor_, shift_ = 31;
  unsigned factor_;
};

}  // namespace deq::cuda
