// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <cstdint>

#include <deq/core/config.hpp>

namespace deq {

/// A float without the lower half of its mantissa: 8 bits of exponent, 7 of mantissa. For numbers
/// that are stored, not for arithmetic. Rounds to nearest, ties to even; infinities and NaNs stay
/// what they are.
class Bfloat16 {
 public:
  Bfloat16() = default;
  DEQ_HOST_DEVICE explicit Bfloat16(float x) {
    const auto all = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t rounded = all + 0x7fff + (all >> 16 & 1);
    const bool number = (all & 0x7fffffff) <= 0x7f800000;
    bits_ = static_cast<std::uint16_t>((number ? rounded : all | 0x400000) >> 16);
  }
  DEQ_HOST_DEVICE explicit Bfloat16(double x) : Bfloat16(rounded_to_odd(x)) {}

  DEQ_HOST_DEVICE operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits_) << 16);
  }

 private:
  /// The float below or above x (in magnitude) whose mantissa is odd, or x: it is on the side of
  /// any middle of two Bfloat16 that x is on, so that rounding it is rounding x.
  DEQ_HOST_DEVICE static float rounded_to_odd(double x) {
    const auto nearest = static_cast<float>(x);
    const auto back = static_cast<double>(nearest);
    if (back == x || !(back == back)) return nearest;
    const bool away = x < 0 ? back < x : back > x;
    return std::bit_cast<float>((std::bit_cast<std::uint32_t>(nearest) - away) | 1u);
  }

  std::uint16_t bits_;
};

}  // namespace deq
