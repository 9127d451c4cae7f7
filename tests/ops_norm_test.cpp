// SPDX-License-Identifier: MIT
// deq/tape/ops/norm.hpp; weight_norm is tested beside the convolutions.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "support/gradient_check.hpp"

using namespace deq_test;
using deq::BatchNormMode;

namespace {

template <class S = double>
using State = deq::BatchNormState<deq::Cpu<S>>;

struct Moments {
  double mean = 0, variance = 0;  ///< the biased one
};
/// Over the elements of x for which belongs(place).
template <class S, class Belongs>
Moments moments(const TensorOf<S>& x, Belongs belongs) {
  Moments m;
  double count = 0;
  const auto over = [&](auto visit) {
    for_each_place(x.shape(), [&](const Place& p) {
      if (belongs(p)) visit(at(x, p));
    });
  };
  over([&](double xi) { m.mean += xi, ++count; });
  m.mean /= count;
  over([&](double xi) { m.variance += (xi - m.mean) * (xi - m.mean) / count; });
  return m;
}
double normalized(double x, const Moments& m, double eps) {
  return (x - m.mean) / std::sqrt(m.variance + eps);
}

/// What the statistics are taken over, as a predicate for the element p.
template <class S>
Moments group_moments(const TensorOf<S>& x, Index groups, const Place& p) {
  const Index width = x.extent(1) / groups;
  return moments(x, [&](const Place& q) { return q[0] == p[0] && q[1] / width == p[1] / width; });
}
template <class S>
Moments channel_moments(const TensorOf<S>& x, const Place& p) {
  return moments(x, [&](const Place& q) { return q[1] == p[1]; });
}

auto group_norm_of(Index groups, double eps = 1e-5) {
  return [=](const auto& x, const auto&... affine) {
    using S = typename std::decay_t<decltype(x)>::Backend::Scalar;
    return group_norm(x, groups, affine..., static_cast<S>(eps));
  };
}
const auto layer_norm_of = [](const auto& x, const auto& w, const auto& b) {
  return layer_norm(x, w, b);
};
/// With a state of its own for every call, so that a call leaves nothing behind.
const auto batch_norm_in_training = [](const auto& x, const auto&... affine) {
  deq::BatchNormState<typename std::decay_t<decltype(x)>::Backend> state(x.extent(1));
  return batch_norm(x, affine..., state, BatchNormMode::train);
};
/// With running statistics that are neither 0 nor 1.
const auto batch_norm_in_evaluation = [](const auto& x, const auto&... affine) {
  using S = typename std::decay_t<decltype(x)>::Backend::Scalar;
  State<S> state(x.extent(1));
  state.running_mean = random_tensor<S>({x.extent(1)}, 11);
  state.running_var = random_tensor<S>({x.extent(1)}, 12, 0.5, 2);
  return batch_norm(x, affine..., state, BatchNormMode::evaluate);
};

struct Grouping {
  Shape shape;
  Index groups;
};
const Grouping groupings[]{
    {{2, 4, 3, 5}, 2}, {{3, 6, 1, 1}, 2}, {{2, 3, 4, 4}, 1}, {{2, 3, 4, 4}, 3},
    {{2, 6}, 3},       {{1, 4, 9}, 2},    {{0, 4, 2, 2}, 2}, {{2, 4, 5, 7}, 4},
};
const Shape batches[]{{2, 3, 4, 5}, {5, 3}, {2, 1, 1, 3}, {1, 2, 3, 3}, {37, 2}, {3, 2, 19}};

}  // namespace

// Group normalisation -----------------------------------------------------------------------------

TEST_CASE_TEMPLATE("group_norm normalises each group of channels of each sample", S, float,
                   double) {
  for (const Grouping& grouping : groupings) {
    const Shape& shape = grouping.shape;
    const Index groups = grouping.groups;
    CAPTURE(shape);
    CAPTURE(groups);
    const auto x = random_tensor<S>(shape, 1, -1, 3);
    const auto w = random_tensor<S>({shape[1]}, 2), b = random_tensor<S>({shape[1]}, 3);
    const auto expected = [&](double eps) {
      return [&x, groups, eps](const Place& p) {
        return normalized(at(x, p), group_moments(x, groups, p), eps);
      };
    };
    check_values(group_norm(x, groups), shape, expected(1e-5));
    check_values(group_norm(x, groups, S(0.5)), shape, expected(0.5));
    check_values(group_norm(x, groups, w, b, S(0.25)), shape,
                 [&](const Place& p) { return expected(0.25)(p) * at(w, p[1]) + at(b, p[1]); });
  }
}

TEST_CASE("VJPs of group_norm") {
  for (const Grouping& grouping : groupings) {
    const Shape& shape = grouping.shape;
    const Index groups = grouping.groups;
    CAPTURE(shape);
    const Tensor x = random_tensor(shape, 1, -1, 3);
    const Tensor w = random_tensor({shape[1]}, 2), b = random_tensor({shape[1]}, 3);
    gradient_check("group_norm", group_norm_of(groups), x);
    gradient_check("group_norm with weight and bias", group_norm_of(groups, 0.1), x, w, b);
  }
}

TEST_CASE("group_norm of a constant group is the bias") {
  const Tensor x({1, 4, 2, 1}, {3, 3, 3, 3, -1, -1, -1, -1}), w({4}, 2), b({4}, {1, 2, 3, 4});
  check_values(group_norm(x, 2, w, b), x.shape(), [&](const Place& p) { return at(b, p[1]); });
  // One number is always its own mean: no derivative, whatever the cotangent.
  const Tensor pixel = random_tensor({2, 3, 1, 1}, 1);
  Recorded recorded(group_norm_of(3), pixel);
  CHECK(same_bits(recorded.y(), Tensor(pixel.shape(), 0)));
  for (const double d : recorded.vjp(random_tensor(pixel.shape(), 2)).front().to_host())
    CHECK(d == 0);
}

TEST_CASE("normalisations: a large mean costs no accuracy") {
  // The sum of squares minus the square of the sum would be off by 1e8 eps / variance, 7e-8; the
  // mean itself is rounded to 1e4 eps.
  const Tensor x = random_tensor({3, 2, 5, 5}, 1, 1e4 - 1, 1e4 + 1);
  check_values(
      group_norm(x, 1), x.shape(),
      [&](const Place& p) { return normalized(at(x, p), group_moments(x, 1, p), 1e-5); }, 1e-11);
  check_values(
      batch_norm_in_training(x), x.shape(),
      [&](const Place& p) { return normalized(at(x, p), channel_moments(x, p), 1e-5); }, 1e-11);
}

// Layer normalisation -----------------------------------------------------------------------------

TEST_CASE_TEMPLATE("layer_norm normalises the last dimension", S, float, double) {
  for (const Shape& shape : {Shape{7}, {3, 40}, {2, 3, 5}, {0, 4}, {2, 1, 3, 9}}) {
    CAPTURE(shape);
    const auto x = random_tensor<S>(shape, 1, -1, 3);
    const auto w = random_tensor<S>({shape[-1]}, 2), b = random_tensor<S>({shape[-1]}, 3);
    const auto last = static_cast<std::size_t>(shape.rank() - 1);
    const auto expected = [&](double eps) {
      return [&, eps](const Place& p) {
        const auto same_row = [&](Place q) { return q[last] = p[last], q == p; };
        return normalized(at(x, p), moments(x, same_row), eps) * at(w, p[last]) + at(b, p[last]);
      };
    };
    check_values(layer_norm(x, w, b), shape, expected(1e-5));
    check_values(layer_norm(x, w, b, S(0.5)), shape, expected(0.5));
  }
}

TEST_CASE("VJPs of layer_norm") {
  for (const Shape& shape : {Shape{7}, {3, 5}, {2, 3, 4}})
    gradient_check("layer_norm", layer_norm_of, random_tensor(shape, 1, -1, 3),
                   random_tensor({shape[-1]}, 2), random_tensor({shape[-1]}, 3));
}

// Batch normalisation -----------------------------------------------------------------------------

TEST_CASE_TEMPLATE("batch_norm normalises with the batch or with the running statistics", S, float,
                   double) {
  for (const Shape& shape : batches) {
    CAPTURE(shape);
    const auto x = random_tensor<S>(shape, 1, -1, 3);
    const auto w = random_tensor<S>({shape[1]}, 2), b = random_tensor<S>({shape[1]}, 3);
    State<S> state(shape[1]);
    const auto check = [&](BatchNormMode mode, auto statistics) {
      const auto expected = [&](double eps) {
        return [=, &x](const Place& p) { return normalized(at(x, p), statistics(p), eps); };
      };
      check_values(batch_norm(x, state, mode), shape, expected(1e-5));
      check_values(batch_norm(x, state, mode, S(0.1), S(0.5)), shape, expected(0.5));
      check_values(batch_norm(x, w, b, state, mode, S(0.1), S(0.25)), shape,
                   [&](const Place& p) { return expected(0.25)(p) * at(w, p[1]) + at(b, p[1]); });
    };
    check(BatchNormMode::train, [&](const Place& p) { return channel_moments(x, p); });
    check(BatchNormMode::evaluate, [&](const Place& p) {
      return Moments{at(state.running_mean, p[1]), at(state.running_var, p[1])};
    });
  }
}

TEST_CASE("VJPs of batch_norm") {
  for (const Shape& shape : batches) {
    CAPTURE(shape);
    const Tensor x = random_tensor(shape, 1, -1, 3);
    const Tensor w = random_tensor({shape[1]}, 2), b = random_tensor({shape[1]}, 3);
    gradient_check("training", batch_norm_in_training, x);
    gradient_check("training with weight and bias", batch_norm_in_training, x, w, b);
    gradient_check("evaluation", batch_norm_in_evaluation, x);
    gradient_check("evaluation with weight and bias", batch_norm_in_evaluation, x, w, b);
  }
}

TEST_CASE("running statistics: start at 0 and 1, unbiased variance, momentum of the new batch") {
  State<> state(2);
  CHECK(state.running_mean.to_host() == std::vector<double>{0, 0});
  CHECK(state.running_var.to_host() == std::vector<double>{1, 1});
  CHECK(state.batches == 0);

  // Channel 0: 1 2 3 4, mean 2.5, unbiased variance 5/3. Channel 1: 0 0 0 8, mean 2, 16.
  const Tensor x({2, 2, 2}, {1, 2, 0, 0, 3, 4, 0, 8});
  const auto expect = [&](double mean_0, double mean_1, double var_0, double var_1,
                          std::int64_t batches_seen) {
    check_values(state.running_mean, {2}, [&](const Place& p) { return p[0] ? mean_1 : mean_0; });
    check_values(state.running_var, {2}, [&](const Place& p) { return p[0] ? var_1 : var_0; });
    CHECK(state.batches == batches_seen);
  };
  batch_norm(x, state, BatchNormMode::train);
  expect(0.25, 0.2, 0.9 + 0.5 / 3, 0.9 + 1.6, 1);
  batch_norm(x, state, BatchNormMode::train, 0.5);
  expect(1.375, 1.1, (0.9 + 0.5 / 3 + 5.0 / 3) / 2, 9.25, 2);
  batch_norm(x, state, BatchNormMode::evaluate, 0.5);
  expect(1.375, 1.1, (0.9 + 0.5 / 3 + 5.0 / 3) / 2, 9.25, 2);
}

TEST_CASE("a recording of batch_norm keeps the statistics that it was made with") {
  const Tensor x = random_tensor({4, 3}, 1), c = random_tensor({4, 3}, 2);
  for (const BatchNormMode mode : {BatchNormMode::train, BatchNormMode::evaluate}) {
    State<> state(3);
    Recorded recorded([&](const auto& v) { return batch_norm(v, state, mode); }, x);
    const auto before = recorded.vjp(c);
    batch_norm(random_tensor({4, 3}, 3, 5, 9), state, BatchNormMode::train);
    CHECK(same_bits(recorded.vjp(c).front(), before.front()));
  }
}

// All of them -------------------------------------------------------------------------------------

TEST_CASE_TEMPLATE("normalisations do not depend on threads", S, float, double) {
  for (const Shape& shape : {Shape{5, 8, 25, 25}, {700, 32}}) {
    CAPTURE(shape);
    const auto x = random_tensor<S>(shape, 1, -1, 3);
    const auto w = random_tensor<S>({shape[1]}, 2), b = random_tensor<S>({shape[1]}, 3);
    check_threads("group_norm", group_norm_of(4), x, w, b);
    check_threads("group_norm without weight", group_norm_of(4), x);
    check_threads("batch_norm, training", batch_norm_in_training, x, w, b);
    check_threads("batch_norm, evaluation", batch_norm_in_evaluation, x, w, b);
  }
  check_threads("layer_norm", layer_norm_of, random_tensor<S>({700, 33}, 1),
                random_tensor<S>({33}, 2), random_tensor<S>({33}, 3));
}

TEST_CASE_TEMPLATE("group_norm, layer_norm and batch_norm in evaluation treat samples on their own",
                   S, float, double) {
  const auto x = random_tensor<S>({3, 6, 5, 3}, 1);
  const auto w = random_tensor<S>({6}, 2), b = random_tensor<S>({6}, 3);
  check_samples(
      "group_norm", [&](const auto& v) { return group_norm_of(2)(v, w, b); }, x);
  check_samples("group_norm without weight", group_norm_of(3), x);
  check_samples(
      "batch_norm", [&](const auto& v) { return batch_norm_in_evaluation(v, w, b); }, x);
  check_samples(
      "layer_norm", [&](const auto& v) { return layer_norm(v, w, b); },
      random_tensor<S>({4, 6}, 4));
}

TEST_CASE("normalisations name the shapes that do not fit") {
  const Tensor x({2, 6, 2, 2}, 1), six({6}, 1), five({5}, 1), row({7}, 1);
  const auto wrong = [](auto f, std::initializer_list<std::string> parts) {
    check_error<deq::ShapeError>(f, parts);
  };
  wrong([&] { group_norm(x, 4); }, {"group_norm", "(2, 6, 2, 2)", "4 groups"});
  wrong([&] { group_norm(x, 0); }, {"group_norm", "(2, 6, 2, 2)", "0 groups"});
  wrong([&] { group_norm(row, 1); }, {"group_norm", "(7)"});
  wrong([&] { group_norm(x, 2, five, six); }, {"group_norm", "(2, 6, 2, 2)", "(5)"});
  wrong([&] { group_norm(x, 2, six, five); }, {"group_norm", "(2, 6, 2, 2)", "(5)"});
  wrong([&] { layer_norm(Tensor(Shape{}, 1), six, six); }, {"layer_norm", "()"});
  wrong([&] { layer_norm(row, six, row); }, {"layer_norm", "(7)", "(6)"});
  wrong([&] { layer_norm(row, row, six); }, {"layer_norm", "(7)", "(6)"});
}

TEST_CASE("batch_norm: what throws leaves the running statistics alone") {
  State<> state(6), small(5);
  const Tensor x({2, 6, 2, 2}, 1), six({6}, 1), five({5}, 1), one_value({1, 6}, 1);
  const auto wrong = [&](auto f, std::initializer_list<std::string> parts) {
    check_error<deq::ShapeError>(f, parts);
    CHECK(state.batches == 0);
    CHECK(same_bits(state.running_mean, Tensor({6}, 0)));
    CHECK(same_bits(state.running_var, Tensor({6}, 1)));
  };
  constexpr auto train = BatchNormMode::train;
  wrong([&] { batch_norm(six, state, train); }, {"batch_norm", "(6)"});
  wrong([&] { batch_norm(x, small, train); }, {"batch_norm", "(2, 6, 2, 2)", "(5)"});
  wrong([&] { batch_norm(x, five, six, state, train); }, {"batch_norm", "(2, 6, 2, 2)", "(5)"});
  wrong([&] { batch_norm(x, six, five, state, train); }, {"batch_norm", "(2, 6, 2, 2)", "(5)"});
  // One value has no unbiased variance; in evaluation it will do.
  wrong([&] { batch_norm(one_value, state, train); }, {"batch_norm", "more than one", "(1, 6)"});
  CHECK(batch_norm(one_value, state, BatchNormMode::evaluate).shape() == one_value.shape());
}
