// expect: deq: for a gradient f must also take and return variables
// SPDX-License-Identifier: MIT
// f takes tensors only: it can be solved, but not recorded for a gradient.
#include <deq/deq.hpp>

using Tensor = deq::Tensor<deq::Cpu<double>>;

int main() {
#ifdef DEQ_FIXED
  auto layer = deq::equilibrium([](const auto& z) { return tanh(z); });
#else
  auto layer = deq::equilibrium([](const Tensor& z) { return tanh(z); });
#endif
  const auto eq = layer.solve(Tensor({2, 3}, 0));
  const auto grad = layer.gradient(eq, Tensor({2, 3}, 1));
}
