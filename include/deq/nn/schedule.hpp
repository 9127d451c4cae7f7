// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include <deq/core/error.hpp>

namespace deq {

/// The learning rate of step t = 0, 1, ...: half a cosine from `initial` at t = 0 down to `final`
/// at t = T,
///
///     lr(t) = final + (initial - final) (1 + cos(pi t / T)) / 2,
///
/// the closed form of torch.optim.lr_scheduler.CosineAnnealingLR (Loshchilov and Hutter, 2017).
/// Beyond T it rises again with period 2 T, as there.
class CosineSchedule {
 public:
  /// `steps` is T >= 1. Throws InvalidArgument for it and for negative rates.
  CosineSchedule(double initial, std::int64_t steps, double final = 0)
      : initial_(initial), final_(final), steps_(steps) {
    require(steps >= 1, "CosineSchedule: steps must be >= 1, got ", steps);
    require(initial >= 0 && final >= 0, "CosineSchedule: learning rates must be >= 0, got ",
            initial, " and ", final);
  }

  double operator()(std::int64_t step) const {
    const double phase = std::numbers::pi * static_cast<double>(step) / static_cast<double>(steps_);
    return final_ + (initial_ - final_) * (1 + std::cos(phase)) / 2;
  }

 private:
  double initial_, final_;
  std::int64_t steps_;
};

}  // namespace deq
