// expect: of a layer that is not const
// SPDX-License-Identifier: MIT
// A layer keeps the memory of its solves.
#include <deq/deq.hpp>

int main() {
  const auto f = [](const auto& z) { return tanh(z); };
#ifdef DEQ_FIXED
  auto layer = deq::equilibrium<deq::Broyden<>, deq::Jfb>(f);
#else
  const auto layer = deq::equilibrium<deq::Broyden<>, deq::Jfb>(f);
#endif
  layer.solve(deq::Tensor<deq::Cpu<float>>({2, 3}, 0));
}
