// expect: deq: write Implicit<> for Implicit
// SPDX-License-Identifier: MIT
// Implicit is a template, whose argument has a default.
#include <deq/deq.hpp>

int main() {
  const auto f = [](const auto& z) { return tanh(z); };
#ifdef DEQ_FIXED
  deq::equilibrium<deq::Broyden<>, deq::Implicit<>>(f);
#else
  deq::equilibrium<deq::Broyden<>, deq::Implicit>(f);
#endif
}
