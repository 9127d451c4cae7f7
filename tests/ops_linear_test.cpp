// SPDX-License-Identifier: MIT
// deq/tape/ops/linear.hpp
#include <algorithm>
#include <vector>

#include <doctest/doctest.h>

#include "support/gradient_check.hpp"

using namespace deq_test;

namespace {

const auto matmul_of = [](const auto& a, const auto& b) { return matmul(a, b); };
const auto linear_of = [](const auto& x, const auto& w, const auto&... b) {
  return linear(x, w, b...);
};

struct Extents {
  Index m, k, n;
};
/// Vectors, nothing, sizes on both sides of the shortest product that Eigen gets, and around the
/// pieces of 64 rows by 128 columns that threads share.
constexpr Extents extents[]{{1, 1, 1},    {1, 5, 1},    {3, 4, 2},   {1, 30, 7},   {30, 7, 1},
                            {7, 1, 9},    {0, 3, 2},    {3, 0, 2},   {3, 2, 0},    {20, 0, 20},
                            {8, 8, 7},    {8, 8, 8},    {64, 8, 64}, {65, 33, 17}, {130, 24, 70},
                            {1, 40, 300}, {66, 20, 257}};

/// The same numbers one element further: no address has the alignment that it had.
template <class S>
class Moved {
 public:
  explicit Moved(const TensorOf<S>& x) : shape_(x.shape()), memory_({x.size() + 1}) {
    std::copy_n(x.data(), x.size(), memory_.data() + 1);
  }
  TensorOf<S> tensor() const { return TensorOf<S>::view(memory_.data() + 1, shape_); }

 private:
  Shape shape_;
  TensorOf<S> memory_;
};

}  // namespace

TEST_CASE_TEMPLATE("matmul and linear are sums of products", S, float, double) {
  for (const Extents& e : extents) {
    const Index m = e.m, k = e.k, n = e.n;
    CAPTURE(m);
    CAPTURE(k);
    CAPTURE(n);
    const auto a = random_tensor<S>({m, k}, 1), b = random_tensor<S>({k, n}, 2);
    const auto w = random_tensor<S>({n, k}, 3), bias = random_tensor<S>({n}, 4);
    const auto row_times_column = [&](const Place& p) {
      double sum = 0;
      for (Index l = 0; l < k; ++l) sum += at(a, p[0], l) * at(b, l, p[1]);
      return sum;
    };
    const auto row_times_row = [&](const Place& p) {
      double sum = 0;
      for (Index l = 0; l < k; ++l) sum += at(a, p[0], l) * at(w, p[1], l);
      return sum;
    };
    check_values(matmul(a, b), {m, n}, row_times_column);
    check_values(linear(a, w), {m, n}, row_times_row);
    const auto plus_bias = [&](const Place& p) { return row_times_row(p) + at(bias, p[1]); };
    check_values(linear(a, w, bias), {m, n}, plus_bias);
    check_values(linear(a, w.frozen()), {m, n}, row_times_row);
    check_values(linear(a, w.frozen(), bias), {m, n}, plus_bias);
  }
}

TEST_CASE("VJPs of matmul and linear") {
  for (const Extents& e : extents) {
    const Index m = e.m, k = e.k, n = e.n;
    if (m * k + k * n > 1000) continue;  // one evaluation an element
    CAPTURE(m);
    CAPTURE(k);
    CAPTURE(n);
    const Tensor a = random_tensor({m, k}, 1), b = random_tensor({k, n}, 2);
    const Tensor w = random_tensor({n, k}, 3), bias = random_tensor({n}, 4);
    gradient_check("matmul", matmul_of, a, b);
    gradient_check("linear", linear_of, a, w);
    gradient_check("linear with bias", linear_of, a, w, bias);
    gradient_check(
        "linear with a frozen weight",
        [frozen = w.frozen()](const auto& x) {
          return linear(x, std::remove_cvref_t<decltype(x)>(frozen));
        },
        a);
  }
}

TEST_CASE_TEMPLATE("matmul and linear do not depend on threads", S, float, double) {
  const auto a = random_tensor<S>({200, 150}, 1), b = random_tensor<S>({150, 131}, 2);
  const auto w = random_tensor<S>({131, 150}, 3), bias = random_tensor<S>({131}, 4);
  check_threads("matmul", matmul_of, a, b);
  check_threads("linear", linear_of, a, w);
  check_threads("linear with bias", linear_of, a, w, bias);
  check_threads("linear with a frozen weight", linear_of, a, w.frozen());
}

TEST_CASE_TEMPLATE("a row never depends on the numbers in other rows", S, float, double) {
  for (const Index in : {3, 31}) {  // by loops, and by Eigen
    const auto x = random_tensor<S>({5, in}, 1), b = random_tensor<S>({in, 6}, 2);
    const auto w = random_tensor<S>({6, in}, 3), bias = random_tensor<S>({6}, 4);
    const auto times_b = [&](const auto& rows) { return matmul(rows, b); };
    const auto layer = [&](const auto& rows) { return linear(rows, w, bias); };
    check_samples("matmul", times_b, x, Batch::same_size);
    check_samples("linear", layer, x, Batch::same_size);
  }
}

TEST_CASE_TEMPLATE("with a frozen weight a row does not depend on other rows at all", S, float,
                   double) {
  // Widths of one vector and of several; rows for blocks of every height.
  for (const Index out : {3, 20, 60})
    for (const Index in : {3, 31, 200}) {
      const auto x = random_tensor<S>({13, in}, 1), bias = random_tensor<S>({out}, 4);
      const auto w = random_tensor<S>({out, in}, 3).frozen();
      check_samples(
          "linear with a frozen weight", [&](const auto& rows) { return linear(rows, w, bias); },
          x);
    }
}

TEST_CASE_TEMPLATE("products do not depend on where in memory their operands lie", S, float,
                   double) {
  for (const Extents& e : extents) {
    const Index m = e.m, k = e.k, n = e.n;
    CAPTURE(m);
    CAPTURE(k);
    CAPTURE(n);
    const auto a = random_tensor<S>({m, k}, 1), b = random_tensor<S>({k, n}, 2);
    const auto w = random_tensor<S>({n, k}, 3);
    const Moved<S> moved_a(a), moved_b(b), moved_w(w);
    CHECK(same_bits(matmul(moved_a.tensor(), moved_b.tensor()), matmul(a, b)));
    CHECK(same_bits(linear(moved_a.tensor(), moved_w.tensor()), linear(a, w)));
  }
}

TEST_CASE("matmul and linear name the shapes that do not fit") {
  const Tensor a({2, 3}, 1), vector({3}, 1), w({4, 3}, 1), four({4}, 1);
  check_error<deq::ShapeError>([&] { matmul(a, w); }, {"matmul", "(2, 3)", "(4, 3)"});
  check_error<deq::ShapeError>([&] { matmul(a, vector); }, {"matmul", "(2, 3)", "(3)"});
  check_error<deq::ShapeError>([&] { matmul(vector, a); }, {"matmul", "(3)", "(2, 3)"});
  const Tensor narrow({4, 2}, 1);
  check_error<deq::ShapeError>([&] { linear(a, narrow); }, {"linear", "(2, 3)", "(4, 2)"});
  check_error<deq::ShapeError>([&] { linear(vector, w); }, {"linear", "(3)", "(4, 3)"});
  check_error<deq::ShapeError>([&] { linear(a, vector); }, {"linear", "(2, 3)", "(3)"});
  check_error<deq::ShapeError>([&] { linear(a, w, vector); }, {"linear", "bias", "(4, 3)", "(3)"});
  check_error<deq::ShapeError>([&] { linear(a, narrow, four); }, {"linear", "(2, 3)", "(4, 2)"});
}
