// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include <deq/backend/cpu/cpu.hpp>
#include <deq/backend/geometry.hpp>

namespace deq {

/// One step of Adam for every parameter.
template <class S>
void adam_step(Cpu<S>, const AdamStep<S>& step, std::span<const AdamTensor<S>> tensors) {
  constexpr Index grain = 16384;
  const S rate = step.numbers[0], root = step.numbers[1];
  for (const AdamTensor<S>& t : tensors)
    parallel_for((t.n + grain - 1) / grain,
                 [=](Index piece) {
                   const Index end = std::min(t.n, (piece + 1) * grain);
                   for (Index i = piece * grain; i < end; ++i) step(t, i, rate, root);
                 },
                 t.n < 2 * grain);
}

}  // namespace deq
