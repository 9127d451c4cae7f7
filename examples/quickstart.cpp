// How do I solve my own fixed point, and differentiate through it?
#include <cmath>
#include <cstdio>

#include <deq/deq.hpp>

using Tensor = deq::Tensor<deq::Cpu<double>>;

int main() {
  // My own f: z = tanh(W z + x + b) for a batch of two samples, three numbers each.
  auto f = [](const auto& z, const auto& x, const auto& W, const auto& b) {
    return tanh(linear(z, W, b) + x);
  };
  Tensor W({3, 3}, {.3, -.2, .1, .1, .25, -.3, -.2, .15, .2});
  Tensor b({3}, {.5, -.3, .2}), x({2, 3}, {0, 0, 0, 1, -1, .5}), z0({2, 3}, 0);

  // The solver and the gradient method are template arguments.
  auto layer = deq::equilibrium<deq::Broyden<>, deq::Implicit<>>(f);
  layer.solver.stopping.relative_tolerance = 1e-12;
  layer.policy.solver.stopping.relative_tolerance = 1e-12;

  auto loss = [&](const Tensor& bias) {  // sum of z*
    auto eq = layer.solve(z0, inputs(x), params(W, bias));
    return sum(eq.z).item();
  };
  auto eq = layer.solve(z0, inputs(x), params(W, b));
  auto grad = layer.gradient(eq, Tensor({2, 3}, 1));  // dloss/dz* = 1
  std::printf("z* = %.6f %.6f %.6f after %d steps\n", eq.z.data()[0], eq.z.data()[1],
              eq.z.data()[2], eq.report.samples[0].iterations);

  double worst = 0;
  for (int i = 0; i < 3; ++i) {
    Tensor up = b.clone(), down = b.clone();
    up.data()[i] += 1e-5, down.data()[i] -= 1e-5;
    double difference = (loss(up) - loss(down)) / 2e-5, gradient = grad.params[1].data()[i];
    std::printf("dloss/db%d = %.8f, by finite differences %.8f\n", i, gradient, difference);
    worst = std::fmax(worst, std::fabs(gradient - difference));
  }
  return worst < 1e-8 ? 0 : 1;
}
