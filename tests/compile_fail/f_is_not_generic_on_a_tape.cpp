// expect: deq: for a gradient f must also take and return variables
// SPDX-License-Identifier: MIT
// On a tape an equilibrium is differentiated, so f must be generic.
#include <deq/deq.hpp>

int main() {
  using B = deq::Cpu<float>;
#ifdef DEQ_FIXED
  auto layer = deq::equilibrium<deq::Broyden<>, deq::Jfb>(
      [](const auto& z, const auto& a) { return tanh(a * z); });
#else
  auto layer = deq::equilibrium<deq::Broyden<>, deq::Jfb>(
      [](const deq::Tensor<B>& z, const deq::Tensor<B>& a) { return tanh(a * z); });
#endif
  deq::Tape<B> tape;
  const auto a = tape.input(deq::Tensor<B>({3}, 0.5F));
  decltype(layer)::Solution<B, 0, 1> eq;
  record_equilibrium(layer, deq::Tensor<B>({2, 3}, 0), deq::no_inputs<deq::Tensor<B>>(), params(a),
                     deq::Output::state, eq);
}
