// SPDX-License-Identifier: MIT
#include <cstdio>

#include <Eigen/Core>

#include <deq/core/parallel.hpp>
#include <deq/core/random.hpp>
#include <deq/core/shape.hpp>

int main() {
  const deq::Shape shape{2, 3};
  Eigen::VectorXd x(shape.size());
  deq::parallel_for(x.size(), [&](deq::Index i) {
    x[i] = deq::Random(1, deq::Purpose::user, 0, static_cast<unsigned>(i)).uniform(1, 2);
  });
  std::printf("%g\n", x.norm());
  return x.minCoeff() >= 1 && x.maxCoeff() < 2 ? 0 : 1;
}
