// SPDX-License-Identifier: MIT
// deq/tape/ops/pool.hpp and deq/tape/ops/shape.hpp
#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "support/gradient_check.hpp"

using namespace deq_test;

namespace {

void wrong_shape(auto f, std::initializer_list<std::string> parts) {
  check_error<deq::ShapeError>(f, parts);
}

const auto global_average_of = [](const auto& x) { return global_average_pool(x); };
const auto flatten_of = [](const auto& x) { return flatten(x); };
const auto transpose_of = [](const auto& x) { return transpose(x); };
auto upsample_of(Index factor) {
  return [=](const auto& x) { return upsample_nearest(x, factor); };
}
auto avg_pool_of(Index k) {
  return [=](const auto& x) { return avg_pool2d(x, k); };
}
auto reshape_of(const Shape& shape) {
  return [=](const auto& x) { return reshape(x, shape); };
}
auto slice_of(Index axis, Index first, Index n) {
  return [=](const auto& x) { return slice(x, axis, first, n); };
}
auto concat_of(Index axis) {
  return [=](const auto&... x) { return concat(axis, x...); };
}

struct Resize {
  Shape small;
  Index factor;
  Shape large() const { return {small[0], small[1], small[2] * factor, small[3] * factor}; }
};
const Resize resizes[]{{{2, 3, 3, 5}, 2}, {{1, 2, 1, 1}, 4}, {{2, 1, 2, 3}, 3},
                       {{2, 2, 3, 2}, 1}, {{0, 2, 3, 3}, 2}, {{1, 1, 1, 4}, 5}};

struct Part {
  Shape whole;
  Index axis, first, n;
};
const Part parts[]{
    {{5}, 0, 1, 3},          {{4, 3}, 0, 2, 2},       {{4, 3}, 1, 0, 2}, {{2, 5, 3, 2}, 1, 2, 3},
    {{2, 3, 5, 2}, 2, 4, 1}, {{2, 3, 2, 5}, 3, 1, 3}, {{2, 3}, 1, 0, 3},  // the whole
    {{2, 3}, 1, 3, 0},       {{0, 3}, 1, 1, 2},                           // nothing
};

struct Joint {
  Index axis;
  Shape first, second, third;
};
const Joint joints[]{
    {0, {2}, {1}, {3}},
    {0, {2, 3}, {1, 3}, {4, 3}},
    {1, {2, 3}, {2, 1}, {2, 2}},
    {1, {2, 1, 3, 2}, {2, 4, 3, 2}, {2, 2, 3, 2}},
    {3, {2, 1, 3, 2}, {2, 1, 3, 1}, {2, 1, 3, 3}},
    {1, {2, 0}, {2, 2}, {2, 0}},
};

}  // namespace

// Resolution --------------------------------------------------------------------------------------

TEST_CASE_TEMPLATE("upsample_nearest repeats pixels, avg_pool2d takes their mean", S, float,
                   double) {
  for (const Resize& resize : resizes) {
    const Index f = resize.factor;
    CAPTURE(resize.small);
    CAPTURE(f);
    const auto small = random_tensor<S>(resize.small, 1),
               large = random_tensor<S>(resize.large(), 2);
    check_values(upsample_nearest(small, f), resize.large(),
                 [&](const Place& p) { return at(small, p[0], p[1], p[2] / f, p[3] / f); });
    check_values(avg_pool2d(large, f), resize.small, [&](const Place& p) {
      double sum = 0;
      for (Index i = 0; i < f; ++i)
        for (Index j = 0; j < f; ++j) sum += at(large, p[0], p[1], p[2] * f + i, p[3] * f + j);
      return sum / static_cast<double>(f * f);
    });
  }
}

TEST_CASE_TEMPLATE("global_average_pool is the mean over all pixels", S, float, double) {
  for (const Shape& shape : {Shape{2, 3, 4, 5}, {3, 2, 1, 1}, {0, 2, 3, 3}, {1, 1, 37, 11}}) {
    CAPTURE(shape);
    const auto x = random_tensor<S>(shape, 1);
    check_values(global_average_pool(x), {shape[0], shape[1]}, [&](const Place& p) {
      double sum = 0;
      for (Index i = 0; i < shape[2]; ++i)
        for (Index j = 0; j < shape[3]; ++j) sum += at(x, p[0], p[1], i, j);
      return sum / static_cast<double>(shape[2] * shape[3]);
    });
  }
}

TEST_CASE("VJPs of changes of resolution") {
  for (const Resize& resize : resizes) {
    const std::string name = deq::message(resize.small, " times ", resize.factor);
    gradient_check("upsample_nearest " + name, upsample_of(resize.factor),
                   random_tensor(resize.small, 1));
    gradient_check("avg_pool2d " + name, avg_pool_of(resize.factor),
                   random_tensor(resize.large(), 2));
    gradient_check("global_average_pool " + name, global_average_of,
                   random_tensor(resize.large(), 2));
  }
}

TEST_CASE("changes of resolution name what does not fit") {
  const Tensor image({1, 2, 4, 6}, 1), matrix({4, 6}, 1);
  wrong_shape([&] { upsample_nearest(matrix, 2); }, {"upsample_nearest", "(4, 6)"});
  wrong_shape([&] { avg_pool2d(matrix, 2); }, {"avg_pool2d", "(4, 6)"});
  wrong_shape([&] { avg_pool2d(image, 3); }, {"avg_pool2d", "divided by 3", "(1, 2, 4, 6)"});
  wrong_shape([&] { avg_pool2d(image, 4); }, {"avg_pool2d", "divided by 4", "(1, 2, 4, 6)"});
  wrong_shape([&] { global_average_pool(matrix); }, {"global_average_pool", "(4, 6)"});
  check_error<deq::InvalidArgument>([&] { upsample_nearest(image, 0); }, {"factor", "0"});
  check_error<deq::InvalidArgument>([&] { avg_pool2d(image, 0); }, {"avg_pool2d", "0"});
}

// Shape -------------------------------------------------------------------------------------------

TEST_CASE("reshape and flatten name the same memory") {
  const Tensor x = random_tensor({2, 3, 4}, 1);
  for (const Shape& shape : {Shape{24}, {4, 6}, {1, 2, 3, 2, 2}}) {
    const Tensor y = reshape(x, shape);
    CHECK(y.shape() == shape);
    CHECK(y.data() == x.data());
  }
  CHECK(flatten(x).shape() == Shape{2, 12});
  CHECK(flatten(x).data() == x.data());
  CHECK(flatten(Tensor({5}, 1)).shape() == Shape{5, 1});
  CHECK(flatten(Tensor({0, 2, 3}, 1)).shape() == Shape{0, 6});
  CHECK(reshape(Tensor({1, 1}, 3), {}).item() == 3);
}

TEST_CASE_TEMPLATE("slice takes a part of an axis", S, float, double) {
  for (const Part& part : parts) {
    CAPTURE(part.whole);
    CAPTURE(part.axis);
    const auto x = random_tensor<S>(part.whole, 1);
    Shape shape = part.whole;
    shape[part.axis] = part.n;
    const auto d = static_cast<std::size_t>(part.axis);
    check_values(
        slice(x, part.axis, part.first, part.n), shape,
        [&](Place p) {
          p[d] += part.first;
          return at(x, p);
        },
        0);
  }
  const auto x = random_tensor<S>({5, 3}, 1);
  CHECK(slice(x, 0, 2, 2).data() == x.data() + 6);  // along axis 0 nothing is copied,
  const auto one = x.rows(1, 1);                    // nor of a single sample
  const auto part = slice(one, 1, 1, 2);
  CHECK(part.shape() == Shape{1, 2});
  CHECK(part.data() == x.data() + 4);
}

TEST_CASE_TEMPLATE("concat puts tensors one after the other", S, float, double) {
  for (const Joint& joint : joints) {
    const Index axis = joint.axis;
    CAPTURE(axis);
    CAPTURE(joint.second);
    const std::vector<TensorOf<S>> xs{random_tensor<S>(joint.first, 1),
                                      random_tensor<S>(joint.second, 2),
                                      random_tensor<S>(joint.third, 3)};
    Shape shape = joint.first;
    shape[axis] += joint.second[axis] + joint.third[axis];
    const auto d = static_cast<std::size_t>(axis);
    const auto expected = [&](Place p) {
      std::size_t i = 0;
      for (; p[d] >= xs[i].extent(static_cast<Index>(d)); ++i)
        p[d] -= xs[i].extent(static_cast<Index>(d));
      return at(xs[i], p);
    };
    check_values(concat(axis, xs), shape, expected, 0);
    check_values(concat(axis, xs[0], xs[1], xs[2]), shape, expected, 0);
  }
  const auto x = random_tensor<S>({2, 3}, 1);
  CHECK(same_bits(concat(1, x), x));
}

TEST_CASE("concat takes tensors and variables in any mixture, and lists of variables") {
  using B = deq::Cpu<double>;
  const Tensor a = random_tensor({2, 3}, 1), b = random_tensor({2, 2}, 2);
  const Tensor c = random_tensor({2, 5}, 3), gradient({2, 2}, 0);
  deq::Tape<B> tape;
  const deq::Var<B> v = tape.input(b);
  for (const deq::Var<B>& y :
       {concat(1, a, v), concat(1, std::vector<deq::Var<B>>{deq::Var<B>(a), v})}) {
    CHECK(same_bits(y.value(), concat(1, a, b)));
    tape.vjp(y, c, std::span(&v, 1), std::span(&gradient, 1));
    CHECK(same_bits(gradient, slice(c, 1, 3, 2)));
  }
}

TEST_CASE_TEMPLATE("transpose exchanges rows and columns", S, float, double) {
  // Less than a tile, tiles and what is left over.
  for (const Shape& shape : {Shape{1, 1}, {3, 5}, {0, 4}, {4, 0}, {33, 70}, {64, 32}}) {
    CAPTURE(shape);
    const auto x = random_tensor<S>(shape, 1);
    check_values(
        transpose(x), {shape[1], shape[0]}, [&](const Place& p) { return at(x, p[1], p[0]); }, 0);
  }
}

TEST_CASE("VJPs of changes of shape") {
  gradient_check("reshape", reshape_of({4, 6}), random_tensor({2, 3, 4}, 1));
  gradient_check("reshape of nothing", reshape_of({0, 6}), random_tensor({2, 0, 4}, 1));
  gradient_check("flatten", flatten_of, random_tensor({2, 3, 4}, 1));
  gradient_check("transpose", transpose_of, random_tensor({3, 5}, 1));
  gradient_check("transpose of tiles", transpose_of, random_tensor({34, 3}, 1));
  for (const auto& [whole, axis, first, n] : parts)
    gradient_check(deq::message("slice of axis ", axis, " of ", whole), slice_of(axis, first, n),
                   random_tensor(whole, 1));
  for (const auto& [axis, first, second, third] : joints)
    gradient_check(deq::message("concat along axis ", axis, " with ", second), concat_of(axis),
                   random_tensor(first, 1), random_tensor(second, 2), random_tensor(third, 3));
}

TEST_CASE("two parts of one tensor, and one tensor twice: cotangents add up") {
  gradient_check(
      "slices that overlap", [](const auto& x) { return slice(x, 1, 0, 3) * slice(x, 1, 1, 3); },
      random_tensor({2, 4}, 1));
  gradient_check(
      "concat of one tensor twice", [](const auto& x) { return concat(0, x, x, scale(x, 2)); },
      random_tensor({2, 3}, 1));
  gradient_check(
      "x and its transpose", [](const auto& x) { return x * transpose(x) + transpose(x); },
      random_tensor({3, 3}, 1));
  gradient_check(
      "x and itself reshaped",
      [](const auto& x) {
        return flatten(x) + reshape(x, {2, 6});
      },
      random_tensor({2, 3, 2}, 1));
}

TEST_CASE("changes of shape name what does not fit") {
  const Tensor x({2, 3}, 1), number(Shape{}, 1), cube({2, 3, 4}, 1);
  wrong_shape([&] { reshape(x, {4, 2}); }, {"reshape", "(2, 3)", "(4, 2)"});
  wrong_shape([&] { flatten(number); }, {"flatten", "()"});
  wrong_shape([&] { transpose(cube); }, {"transpose", "(2, 3, 4)"});
  wrong_shape([&] { slice(x, 2, 0, 1); }, {"slice", "axis 2", "(2, 3)"});
  wrong_shape([&] { slice(x, -1, 0, 1); }, {"slice", "axis -1", "(2, 3)"});
  wrong_shape([&] { slice(x, 1, 2, 2); }, {"slice", "[2, 4)", "axis 1", "(2, 3)"});
  wrong_shape([&] { slice(x, 1, -1, 2); }, {"slice", "[-1, 1)", "(2, 3)"});
  wrong_shape([&] { slice(x, 0, 0, -1); }, {"slice", "[0, -1)", "(2, 3)"});
  wrong_shape([&] { concat(2, x, x); }, {"concat", "axis 2", "(2, 3)"});
  wrong_shape([&] { concat(1, x, Tensor({3, 3}, 1)); }, {"concat", "(2, 3)", "(3, 3)", "axis 1"});
  wrong_shape([&] { concat(0, x, cube); }, {"concat", "(2, 3)", "(2, 3, 4)"});
  wrong_shape([&] { concat(0, std::vector<Tensor>{}); }, {"concat", "at least one"});
}

// All of them -------------------------------------------------------------------------------------

TEST_CASE_TEMPLATE("resolution and shape do not depend on threads", S, float, double) {
  const auto x = random_tensor<S>({4, 5, 64, 64}, 1), y = random_tensor<S>({4, 3, 64, 64}, 2);
  check_threads("upsample_nearest", upsample_of(2), x);
  check_threads("avg_pool2d", avg_pool_of(2), x);
  check_threads("global_average_pool", global_average_of, x);
  check_threads("slice", slice_of(1, 1, 4), x);
  check_threads("concat", concat_of(1), x, y);
  check_threads("transpose", transpose_of, random_tensor<S>({300, 301}, 1));
}

TEST_CASE("resolution and shape treat samples on their own") {
  const Tensor x = random_tensor({3, 2, 4, 6}, 1);
  check_samples("upsample_nearest", upsample_of(3), x);
  check_samples("avg_pool2d", avg_pool_of(2), x);
  check_samples("global_average_pool", global_average_of, x);
  check_samples("flatten", flatten_of, x);
  check_samples("slice", slice_of(2, 1, 2), x);
  check_samples(
      "concat", [](const auto& v) { return concat(1, v, scale(v, 2)); }, x);
}
