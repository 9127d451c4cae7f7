// SPDX-License-Identifier: MIT
// deq/tape/ops/elementwise.hpp
#include <cmath>
#include <limits>
#include <numbers>

#include <doctest/doctest.h>

#include "support/gradient_check.hpp"

using namespace deq_test;

namespace {

/// visit(name, operation, reference) for every operation that is defined on all numbers.
template <class Visit>
void for_each_operation(Visit visit) {
  visit(
      "relu", [](const auto& x) { return relu(x); }, [](double x) { return std::fmax(x, 0); });
  visit(
      "tanh", [](const auto& x) { return tanh(x); },
      [](double x) { return (std::exp(2 * x) - 1) / (std::exp(2 * x) + 1); });
  visit(
      "sigmoid", [](const auto& x) { return sigmoid(x); },
      [](double x) { return (1 + std::tanh(x / 2)) / 2; });
  visit(
      "exp", [](const auto& x) { return exp(x); }, [](double x) { return std::exp(x); });
  visit(
      "gelu", [](const auto& x) { return gelu(x); },
      [](double x) { return x * std::erfc(-x / std::numbers::sqrt2) / 2; });
  visit(
      "softplus", [](const auto& x) { return softplus(x); },
      [](double x) { return std::log(1 + std::exp(x)); });
  visit(
      "sin", [](const auto& x) { return sin(x); }, [](double x) { return std::sin(x); });
  visit(
      "cos", [](const auto& x) { return cos(x); }, [](double x) { return std::cos(x); });
  visit(
      "square", [](const auto& x) { return square(x); }, [](double x) { return x * x; });
  visit(
      "scale", [](const auto& x) { return scale(x, -1.25); }, [](double x) { return -1.25 * x; });
  // Literals of any arithmetic type.
  visit(
      "x * a", [](const auto& x) { return x * 3; }, [](double x) { return 3 * x; });
  visit(
      "a * x", [](const auto& x) { return 0.75 * x; }, [](double x) { return 0.75 * x; });
  visit(
      "x / a", [](const auto& x) { return x / 3.f; }, [](double x) { return x / 3; });
  visit(
      "x + a", [](const auto& x) { return x + 2; }, [](double x) { return x + 2; });
  visit(
      "a + x", [](const auto& x) { return 0.5 + x; }, [](double x) { return 0.5 + x; });
  visit(
      "x - a", [](const auto& x) { return x - 2; }, [](double x) { return x - 2; });
  visit(
      "a - x", [](const auto& x) { return 0.5 - x; }, [](double x) { return 0.5 - x; });
  visit(
      "-x", [](const auto& x) { return -x; }, [](double x) { return -x; });
}
/// The same for those that need positive ones.
template <class Visit>
void for_each_operation_on_positive_numbers(Visit visit) {
  visit(
      "log", [](const auto& x) { return log(x); }, [](double x) { return std::log(x); });
  visit(
      "sqrt", [](const auto& x) { return sqrt(x); }, [](double x) { return std::sqrt(x); });
  visit(
      "a / x", [](const auto& x) { return 2 / x; }, [](double x) { return 2 / x; });
}

/// check(name, operation, reference, x) for all of them, with random x of this shape.
template <class S = double, class Check>
void on_random_data(const Shape& shape, Check check) {
  for_each_operation([&](const char* name, auto f, auto reference) {
    check(name, f, reference, random_tensor<S>(shape, 1, -2, 2));
  });
  for_each_operation_on_positive_numbers([&](const char* name, auto f, auto reference) {
    check(name, f, reference, random_tensor<S>(shape, 1, 0.3, 3));
  });
}

/// f(x) and f'(x) at one point.
struct Point {
  double value, slope;
};
template <class F>
Point at_point(F f, double x) {
  Recorded recorded(f, Tensor({1}, x));
  return {recorded.y().item(), recorded.vjp(Tensor({1}, 1)).front().item()};
}

}  // namespace

TEST_CASE_TEMPLATE("elementwise operations compute their function", S, float, double) {
  // A number, nothing, lengths around vector registers and across two pieces of parallel work.
  for (const Shape& shape : {Shape{}, {0}, {0, 3}, {1}, {2, 3, 1, 17}, {40'000}}) {
    CAPTURE(shape);
    on_random_data<S>(shape, [](const char* name, auto f, auto reference, const auto& x) {
      CAPTURE(name);
      check_values(f(x), x.shape(), [&](const Place& p) { return reference(at(x, p)); });
    });
  }
}

TEST_CASE("VJPs of elementwise operations") {
  for (const Shape& shape : {Shape{}, {0, 3}, {3, 7}})
    on_random_data(
        shape, [](const char* name, auto f, auto, const Tensor& x) { gradient_check(name, f, x); });
}

TEST_CASE("elementwise operations do not depend on threads or neighbours") {
  on_random_data<float>(
      {40'000}, [](const char* name, auto f, auto, const auto& x) { check_threads(name, f, x); });
  on_random_data<float>(
      {3, 11}, [](const char* name, auto f, auto, const auto& x) { check_samples(name, f, x); });
}

TEST_CASE("relu: derivative 0 at 0, and NaN stays NaN") {
  const auto f = [](const auto& x) { return relu(x); };
  CHECK(at_point(f, 0).slope == 0);
  CHECK(at_point(f, -0.0).slope == 0);
  CHECK(at_point(f, std::numeric_limits<double>::min()).slope == 1);
  CHECK(std::isnan(at_point(f, not_a_number).value));
}

TEST_CASE("elementwise operations saturate instead of overflowing") {
  const auto expect = [](const char* name, auto f, double x, Point expected) {
    CAPTURE(name);
    CAPTURE(x);
    const Point point = at_point(f, x);
    CHECK(point.value == expected.value);
    CHECK(point.slope == expected.slope);
  };
  const auto softplus_of = [](const auto& x) { return softplus(x); };
  const auto sigmoid_of = [](const auto& x) { return sigmoid(x); };
  const auto gelu_of = [](const auto& x) { return gelu(x); };
  const auto tanh_of = [](const auto& x) { return tanh(x); };
  expect("softplus", softplus_of, 1000, {1000, 1});
  expect("softplus", softplus_of, -1000, {0, 0});
  expect("sigmoid", sigmoid_of, 1000, {1, 0});
  expect("sigmoid", sigmoid_of, -1000, {0, 0});
  expect("gelu", gelu_of, 1000, {1000, 1});
  expect("gelu", gelu_of, -1000, {0, 0});
  expect("tanh", tanh_of, 1000, {1, 0});
  expect("tanh", tanh_of, -1000, {-1, 0});
}

TEST_CASE("at the border of their domain log and sqrt give what the standard library gives") {
  CHECK(at_point([](const auto& x) { return log(x); }, 0).value == -infinity);
  CHECK(std::isnan(at_point([](const auto& x) { return log(x); }, -1).value));
  CHECK(at_point([](const auto& x) { return sqrt(x); }, 0).value == 0);
  CHECK(at_point([](const auto& x) { return sqrt(x); }, 0).slope == infinity);
  CHECK(at_point([](const auto& x) { return 1 / x; }, 0).value == infinity);
}
