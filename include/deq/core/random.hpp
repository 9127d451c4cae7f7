// SPDX-License-Identifier: MIT
// Counter-based random numbers: a number is a pure function of (seed, purpose, step, sample, i), so
// that the same seed gives the same bits for any number of threads and after any restart.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

#include <deq/core/config.hpp>

namespace deq {

/// What a stream of random numbers is for. Streams of different purposes never meet.
enum class Purpose : std::uint32_t {
  user = 0,
  initialization = 1,
  shuffle = 2,
  augmentation = 3,
  dropout = 4,
  synthetic_data = 5,
  probe = 6,
};

/// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC11):
/// 128 bits of counter and 64 bits of key in, 128 random bits out.
DEQ_HOST_DEVICE inline std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                                           std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {
        static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
        static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

/// A stream of random numbers, named by (seed, purpose, step, sample). Cheap to construct: make one
/// where it is needed rather than passing one along.
class Random {
 public:
  Random(std::uint64_t seed, Purpose purpose, std::uint32_t step = 0, std::uint32_t sample = 0)
      : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)},
        counter_{0, sample, step, static_cast<std::uint32_t>(purpose)} {}

  /// 32 uniform random bits.
  std::uint32_t bits() {
    if (used_ == 4) {
      block_ = philox(counter_, key_);
      ++counter_[0];
      used_ = 0;
    }
    return block_[used_++];
  }
  /// Uniform in [0, 1), 24 bits: exact in float, and the same value in double.
  double uniform() { return (bits() >> 8) * 0x1p-24; }
  /// Uniform in [low, high).
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// Uniform in {0, ..., n - 1}, n > 0; the bias of at most n / 2^32 is left in.
  std::uint32_t below(std::uint32_t n) {
    return static_cast<std::uint32_t>((std::uint64_t{bits()} * n) >> 32);
  }
  /// Standard normal, by Box and Muller.
  double normal() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    const double u = 1.0 - uniform();  // in (0, 1], so that the logarithm is finite
    const double radius = std::sqrt(-2.0 * std::log(u));
    const double angle = 2.0 * std::numbers::pi * uniform();
    spare_ = radius * std::sin(angle);
    has_spare_ = true;
    return radius * std::cos(angle);
  }

 private:
  std::array<std::uint32_t, 2> key_;
  std::array<std::uint32_t, 4> counter_;
  std::array<std::uint32_t, 4> block_{};
  std::uint32_t used_ = 4;
  bool has_spare_ = false;
  double spare_ = 0;
};

}  // namespace deq
