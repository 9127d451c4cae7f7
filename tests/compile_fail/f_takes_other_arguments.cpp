// expect: deq: f must take z, then every input, then every parameter
// SPDX-License-Identifier: MIT
// f takes a state and an input, but the layer is solved without inputs.
#include <deq/deq.hpp>

using Tensor = deq::Tensor<deq::Cpu<double>>;

int main() {
  auto layer = deq::equilibrium([](const auto& z, const auto& x) { return tanh(z) + x; });
  const Tensor z0({2, 3}, 0), x({2, 3}, 1);
#ifdef DEQ_FIXED
  const auto eq = layer.solve(z0, inputs(x), deq::no_params<Tensor>());
#else
  const auto eq = layer.solve(z0);
#endif
}
