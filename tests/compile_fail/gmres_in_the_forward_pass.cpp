// expect: deq: Equilibrium needs a solver for any f: Broyden, Anderson or FixedPoint
// SPDX-License-Identifier: MIT
// Gmres is for the linear equation of the backward pass, not for f.
#include <deq/deq.hpp>

int main() {
  const auto f = [](const auto& z) { return tanh(z); };
#ifdef DEQ_FIXED
  auto layer = deq::equilibrium<deq::Anderson, deq::Implicit<deq::Gmres>>(f);
#else
  auto layer = deq::equilibrium<deq::Gmres, deq::Jfb>(f);
#endif
  const auto eq = layer.solve(deq::Tensor<deq::Cpu<double>>({2, 3}, 0));
}
