// expect: deq: record_equilibrium fills a solution of its layer and of as many inputs
// SPDX-License-Identifier: MIT
// A solution is one of a number of inputs and of parameters.
#include <deq/deq.hpp>

int main() {
  using B = deq::Cpu<float>;
  auto layer = deq::equilibrium<deq::Broyden<>, deq::Jfb>(
      [](const auto& z, const auto& x, const auto& a) { return tanh(a * z + x); });
  deq::Tape<B> tape;
  const deq::Tensor<B> z0({2, 3}, 0), x({2, 3}, 1);
  const auto a = tape.input(deq::Tensor<B>({3}, 0.5F));
#ifdef DEQ_FIXED
  decltype(layer)::Solution<B, 1, 1> eq;
#else
  decltype(layer)::Solution<B, 1, 2> eq;
#endif
  record_equilibrium(layer, z0, inputs(x), params(a), deq::Output::state, eq);
}
