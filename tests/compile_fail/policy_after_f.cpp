// expect: deq: the first template argument of equilibrium, or the argument after f, is the solver
// SPDX-License-Identifier: MIT
// After f comes the solver, then the gradient method.
#include <deq/deq.hpp>

int main() {
  const auto f = [](const auto& z) { return tanh(z); };
#ifdef DEQ_FIXED
  deq::equilibrium(f, deq::Broyden<>{}, deq::Npg{3, 0.5});
#else
  deq::equilibrium(f, deq::Npg{3, 0.5});
#endif
}
