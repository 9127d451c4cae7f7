// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backend/cpu/cpu.hpp>

namespace deq {

/// out[i] = f(in[i]...), i < n. `out` may be one of the inputs.
template <class S, class Function, class... In>
void elementwise(Cpu<S>, Index n, Function f, S* out, const In*... in) {
  constexpr Index grain = 16384;
  const Index pieces = (n + grain - 1) / grain;
  parallel_for(
      pieces,
      [=](Index piece) {
        const Index end = std::min(n, (piece + 1) * grain);
        for (Index i = piece * grain; i < end; ++i) out[i] = f(in[i]...);
      },
      n < 2 * grain);
}

}  // namespace deq
