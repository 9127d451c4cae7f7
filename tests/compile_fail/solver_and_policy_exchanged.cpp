// expect: deq: the first template argument of equilibrium
// SPDX-License-Identifier: MIT
// The solver is the first template argument, the gradient method the second.
#include <deq/deq.hpp>

int main() {
  const auto f = [](const auto& z) { return tanh(z); };
#ifdef DEQ_FIXED
  const auto layer = deq::equilibrium<deq::Broyden<>, deq::Jfb>(f);
#else
  const auto layer = deq::equilibrium<deq::Jfb, deq::Broyden<>>(f);
#endif
}
