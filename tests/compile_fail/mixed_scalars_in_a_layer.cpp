// expect: deq: it is solve(z0, inputs(x...), params(theta...)), tensors of one backend and scalar
// SPDX-License-Identifier: MIT
// The state is double and the input float: nothing is converted in silence.
#include <deq/deq.hpp>

using Double = deq::Tensor<deq::Cpu<double>>;
using Float = deq::Tensor<deq::Cpu<float>>;

int main() {
  auto layer = deq::equilibrium([](const auto& z, const auto& x) { return tanh(z) + x; });
#ifdef DEQ_FIXED
  const Double x({2, 3}, 1);
#else
  const Float x({2, 3}, 1);
#endif
  const auto eq = layer.solve(Double({2, 3}, 0), inputs(x), deq::no_params<Double>());
}
