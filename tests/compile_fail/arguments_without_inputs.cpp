// expect: deq: it is solve(z0, inputs(x...), params(theta...)), tensors of one backend and scalar
// SPDX-License-Identifier: MIT
// What has a row a sample, and what all samples share, has to be said.
#include <deq/deq.hpp>

int main() {
  auto layer = deq::equilibrium<deq::Broyden<>, deq::Jfb>(
      [](const auto& z, const auto& x, const auto& a) { return tanh(a * z + x); });
  const deq::Tensor<deq::Cpu<float>> z0({2, 3}, 0), x({2, 3}, 1), a({3}, 0.5F);
#ifdef DEQ_FIXED
  layer.solve(z0, inputs(x), params(a));
#else
  layer.solve(z0, x, a);
#endif
}
