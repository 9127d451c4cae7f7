// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstdio>

#include <deq/deq.hpp>

using Tensor = deq::Tensor<deq::Cpu<double>>;

// z = x cos(z) / 2 for two samples; with the loss z_0 + z_1, dloss/dx = cos(z) / (2 + x sin(z)).
int main() {
  const auto f = [](const auto& z, const auto& x) { return x * cos(z) * 0.5; };
  auto layer = deq::equilibrium<deq::Broyden<>, deq::Gdeq>(f);
  layer.solver.stopping.relative_tolerance = 1e-12;
  layer.policy.refinements = 1;

  const Tensor z0({2, 1}, 0), x({2, 1}, {1, 1.5});
  const auto eq = layer.solve(z0, inputs(x), deq::no_params<Tensor>());
  const auto grad = layer.gradient(eq, Tensor({2, 1}, 1));

  double error = 0;
  for (const int i : {0, 1}) {
    const double xi = x.data()[i], z = eq.z.data()[i], slope = grad.inputs[0].data()[i];
    error = std::fmax(error, std::fabs(z - xi * std::cos(z) / 2));
    error = std::fmax(error, std::fabs(slope - std::cos(z) / (2 + xi * std::sin(z))));
    std::printf("z = %.9f, dz/dx = %.9f\n", z, slope);
  }
  return eq.report.all_converged() && error < 1e-6 ? 0 : 1;
}
