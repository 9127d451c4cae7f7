// expect: deq: Gdeq needs the inverse Jacobian of the forward solve
// SPDX-License-Identifier: MIT
// Gdeq re-uses the inverse that the forward solve has left behind: FixedPoint leaves none.
#include <deq/deq.hpp>

int main() {
  const auto f = [](const auto& z) { return tanh(z); };
#ifdef DEQ_FIXED
  auto layer = deq::equilibrium<deq::Broyden<>, deq::Gdeq>(f);
#else
  auto layer = deq::equilibrium<deq::FixedPoint, deq::Gdeq>(f);
#endif
  const auto eq = layer.solve(deq::Tensor<deq::Cpu<double>>({2, 3}, 0));
}
