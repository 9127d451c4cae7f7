// expect: deq: f must take z, then every input, then every parameter
// SPDX-License-Identifier: MIT
// f returns a number where the next state belongs.
#include <deq/deq.hpp>

int main() {
#ifdef DEQ_FIXED
  auto layer = deq::equilibrium([](const auto& z) { return tanh(z); });
#else
  auto layer = deq::equilibrium([](const auto& z) { return sum(z).item(); });
#endif
  const auto eq = layer.solve(deq::Tensor<deq::Cpu<double>>({2, 3}, 0));
}
