// expect: deq: the second template argument of equilibrium
// SPDX-License-Identifier: MIT
// Gmres is a way to solve Implicit's linear equation, not a gradient method.
#include <deq/deq.hpp>

int main() {
  const auto f = [](const auto& z) { return tanh(z); };
#ifdef DEQ_FIXED
  const auto layer = deq::equilibrium<deq::Broyden<>, deq::Implicit<deq::Gmres>>(f);
#else
  const auto layer = deq::equilibrium<deq::Broyden<>, deq::Gmres>(f);
#endif
}
