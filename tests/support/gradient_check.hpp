// SPDX-License-Identifier: MIT
// The tape's VJP of any callable against central finite differences, and what Tape::vjp promises of
// every VJP: it replays, prunes, overwrites and accumulates, and is the same for the last time.
#pragma once

#include <array>
#include <cmath>
#include <concepts>
#include <string>
#include <tuple>
#include <vector>

#include <doctest/doctest.h>

#include "tensors.hpp"

namespace deq_test {

inline double norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double xi : x) sum += xi * xi;
  return std::sqrt(sum);
}
inline std::vector<double> difference(std::vector<double> a, const std::vector<double>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

/// The gradient of <cotangent, f(x...)> with respect to x[which], by central differences.
template <class F, std::size_t n>
std::vector<double> finite_differences(F f, std::array<Tensor, n> x, std::size_t which,
                                       const Tensor& cotangent) {
  x[which] = x[which].clone();
  std::vector<double> gradient;
  for (Index j = 0; j < x[which].size(); ++j) {
    double& xj = x[which].data()[j];
    const double middle = xj, up = middle + 1e-5, down = middle - 1e-5;
    xj = up;
    const std::vector<double> above = std::apply(f, x).to_host();
    xj = down;
    const std::vector<double> below = std::apply(f, x).to_host();
    xj = middle;
    // Differences before the product with the cotangent, so that large values do not cancel in it.
    double sum = 0;
    for (std::size_t i = 0; i < above.size(); ++i)
      sum += cotangent.data()[i] * (above[i] - below[i]);
    gradient.push_back(sum / (up - down));
  }
  return gradient;
}

/// ||vjp - fd|| / ||fd|| for every input; 0 where both are 0.
template <class F, std::same_as<Tensor>... X>
std::vector<double> gradient_errors(F f, const X&... x) {
  Recorded recorded(f, x...);
  const Tensor cotangent = random_tensor(recorded.y().shape(), 99);
  const std::vector<Tensor> gradients = recorded.vjp(cotangent);
  std::vector<double> errors;
  for (std::size_t i = 0; i < sizeof...(X); ++i) {
    const auto expected =
        finite_differences(f, std::array<Tensor, sizeof...(X)>{x...}, i, cotangent);
    const double error = norm(difference(gradients[i].to_host(), expected));
    errors.push_back(error == 0 ? 0 : error / norm(expected));
  }
  return errors;
}

/// Checks all that a VJP of y = f(x...) has to be. The data have to be away from kinks.
template <class F, std::same_as<Tensor>... X>
void gradient_check(const std::string& name, F f, const X&... x) {
  CAPTURE(name);
  constexpr std::size_t n = sizeof...(X);
  const std::array<Tensor, n> inputs{x...};
  Recorded recorded(f, x...);
  CHECK(same_bits(recorded.y(), f(x...)));
  const Tensor cotangent = random_tensor(recorded.y().shape(), 99);
  const Tensor cotangent_before = cotangent.clone();
  const std::vector<Tensor> gradients = recorded.vjp(cotangent);

  const std::vector<double> errors = gradient_errors(f, x...);
  std::vector<Tensor> start;
  for (const Tensor& g : gradients) start.push_back(random_tensor(g.shape(), 100));
  const std::vector<Tensor> accumulated = recorded.accumulated(cotangent, start);
  recorded.vjp(random_tensor(cotangent.shape(), 101));  // another cotangent leaves nothing behind
  const std::vector<Tensor> again = recorded.vjp(cotangent);

  for (std::size_t i = 0; i < n; ++i) {
    CAPTURE(i);
    CHECK(errors[i] <= 1e-6);
    CHECK(same_bits(again[i], gradients[i]));
    // Pruned by what is asked for, and by what is a variable at all.
    CHECK(same_bits(recorded.vjp(cotangent, i), gradients[i]));
    deq::Tape<deq::Cpu<double>> tape;
    std::array<deq::Var<deq::Cpu<double>>, n> mixed{deq::Var<deq::Cpu<double>>(x)...};
    mixed[i] = tape.input(inputs[i]);
    const Tensor alone(gradients[i].shape(), not_a_number);
    tape.vjp(std::apply(f, mixed), cotangent, std::span(&mixed[i], 1), std::span(&alone, 1));
    CHECK(same_bits(alone, gradients[i]));
    // Not the same bits: a sum that starts elsewhere rounds elsewhere.
    const auto s = start[i].to_host(), g = gradients[i].to_host(), a = accumulated[i].to_host();
    CHECK(norm(difference(difference(a, s), g)) <= 1e-14 * (norm(s) + norm(g)));
  }
  const std::vector<Tensor> last = recorded.last_vjp(cotangent);
  for (std::size_t i = 0; i < n; ++i) CHECK(same_bits(last[i], gradients[i]));
  CHECK(same_bits(cotangent, cotangent_before));
}

}  // namespace deq_test
