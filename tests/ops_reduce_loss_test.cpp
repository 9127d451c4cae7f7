// SPDX-License-Identifier: MIT
// deq/tape/ops/broadcast.hpp, deq/tape/ops/reduce.hpp, deq/tape/ops/loss.hpp, and the mask of
// variational dropout, which acts by broadcasting.
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <deq/nn/dropout.hpp>

#include "support/gradient_check.hpp"

using namespace deq_test;

namespace {

void wrong_shape(auto f, std::initializer_list<std::string> parts) {
  check_error<deq::ShapeError>(f, parts);
}

/// visit(name, operation): tensors and variables for the library, doubles for the reference.
template <class Visit>
void for_each_operator(Visit visit) {
  visit("operator+", [](const auto& a, const auto& b) { return a + b; });
  visit("operator-", [](const auto& a, const auto& b) { return a - b; });
  visit("operator*", [](const auto& a, const auto& b) { return a * b; });
  visit("operator/", [](const auto& a, const auto& b) { return a / b; });
}

/// The element of x that is seen at `place` of `full`: aligned at the ends, 1 is repeated.
template <class S>
double broadcast_at(const TensorOf<S>& x, const Shape& full, const Place& place) {
  Place p{};
  for (Index d = 0; d < x.shape().rank(); ++d)
    if (x.extent(d) != 1)
      p[static_cast<std::size_t>(d)] =
          place[static_cast<std::size_t>(d + full.rank() - x.shape().rank())];
  return at(x, p);
}

struct Pair {
  Shape a, b, result;
};
const Pair pairs[]{
    {{}, {}, {}},
    {{2, 3}, {2, 3}, {2, 3}},
    {{2, 3}, {}, {2, 3}},
    {{3}, {2, 3}, {2, 3}},
    {{2, 3}, {1, 3}, {2, 3}},
    {{2, 1}, {2, 3}, {2, 3}},
    {{2, 1}, {1, 3}, {2, 3}},  // both are repeated
    {{1, 1}, {1}, {1, 1}},
    {{4, 1, 2}, {3, 1}, {4, 3, 2}},
    {{2, 3, 4, 5}, {2, 3, 1, 1}, {2, 3, 4, 5}},                    // a dropout mask
    {{3, 1, 1}, {2, 3, 4, 2}, {2, 3, 4, 2}},                       // a bias of channels
    {{2, 1, 2, 1, 2, 1}, {1, 3, 1, 2, 1, 2}, {2, 3, 2, 2, 2, 2}},  // nothing merges
    {{0, 3}, {1, 3}, {0, 3}},
    {{2, 1}, {0}, {2, 0}},
};

const auto sum_of = [](const auto& x) { return sum(x); };
const auto mean_of = [](const auto& x) { return mean(x); };
const auto squared_norm_of = [](const auto& x) { return squared_norm(x); };
const auto softmax_of = [](const auto& x) { return softmax(x); };
const auto log_softmax_of = [](const auto& x) { return log_softmax(x); };
const auto mse_loss_of = [](const auto& a, const auto& b) { return mse_loss(a, b); };
auto sum_over(Index axis, bool keepdim) {
  return [=](const auto& x) { return sum(x, axis, keepdim); };
}
auto mean_over(Index axis, bool keepdim) {
  return [=](const auto& x) { return mean(x, axis, keepdim); };
}
auto cross_entropy_with(std::vector<int> labels) {
  return [=](const auto& x) { return softmax_cross_entropy(x, labels); };
}

/// `shape` without dimension `axis`, or with extent 1 there.
Shape without(const Shape& shape, Index axis, bool keepdim) {
  std::vector<Index> extents(shape.extents().begin(), shape.extents().end());
  const auto place = extents.begin() + axis;
  if (keepdim)
    *place = 1;
  else
    extents.erase(place);
  return Shape(extents);
}

/// log sum exp of the row of x that p is in.
template <class S>
double log_sum_exp(const TensorOf<S>& x, Place p) {
  const auto last = static_cast<std::size_t>(x.shape().rank() - 1);
  double sum = 0;
  for (p[last] = 0; p[last] < x.shape()[-1]; ++p[last]) sum += std::exp(at(x, p));
  return std::log(sum);
}

const Shape row_shapes[]{{1}, {5}, {3, 1}, {4, 10}, {2, 3, 7}, {0, 3}, {5, 33}};

}  // namespace

// Broadcasting ------------------------------------------------------------------------------------

TEST_CASE_TEMPLATE("the four operators broadcast as NumPy's do", S, float, double) {
  const auto check = [](const Shape& sa, const Shape& sb, const Shape& result) {
    CAPTURE(sa);
    CAPTURE(sb);
    const auto a = random_tensor<S>(sa, 1), b = random_tensor<S>(sb, 2, 0.5, 2);
    for_each_operator([&](const char* name, auto f) {
      CAPTURE(name);
      check_values(f(a, b), result, [&](const Place& p) {
        return f(broadcast_at(a, result, p), broadcast_at(b, result, p));
      });
    });
  };
  for (const Pair& pair : pairs) {
    check(pair.a, pair.b, pair.result);
    check(pair.b, pair.a, pair.result);
  }
  check({3, 5000}, {5000}, {3, 5000});  // rows that are cut into pieces
}

TEST_CASE("VJPs of the four operators sum over what was repeated") {
  for (const Pair& pair : pairs) {
    const Shape &sa = pair.a, &sb = pair.b;
    const Tensor a = random_tensor(sa, 1), b = random_tensor(sb, 2, 0.5, 2);
    const Tensor c = random_tensor(sa, 3, 0.5, 2);
    for_each_operator([&](const std::string& name, auto f) {
      gradient_check(deq::message(name, " of ", sa, " and ", sb), f, a, b);
      gradient_check(deq::message(name, " of ", sb, " and ", sa), f, b, c);
    });
  }
}

TEST_CASE_TEMPLATE("long sums over what was repeated", S, float, double) {
  // Reduced in rows that are cut into pieces, within a row, and both.
  const Shape full{20, 5000};
  const auto a = random_tensor<S>(full, 1), c = random_tensor<S>(full, 2);
  const auto add = [](const auto& x, const auto& y) { return x + y; };
  const auto gradient = [&](const Shape& shape) {
    return Recorded(add, a, random_tensor<S>(shape, 3)).vjp(c, 1);
  };
  const auto sum_of_cotangents = [&](bool all_rows, bool all_columns, const Place& p) {
    double total = 0;
    for (Index i = all_rows ? 0 : p[0]; i < (all_rows ? 20 : p[0] + 1); ++i)
      for (Index j = all_columns ? 0 : p[1]; j < (all_columns ? 5000 : p[1] + 1); ++j)
        total += at(c, i, j);
    return total;
  };
  check_values(gradient({1, 5000}), {1, 5000},
               [&](const Place& p) { return sum_of_cotangents(true, false, p); });
  check_values(gradient({20, 1}), {20, 1},
               [&](const Place& p) { return sum_of_cotangents(false, true, p); });
  check_values(gradient({1, 1}), {1, 1},
               [&](const Place& p) { return sum_of_cotangents(true, true, p); });
}

TEST_CASE("operands that do not broadcast are named") {
  const Tensor a({2, 3}, 1), b({2, 4}, 1), c({3, 2, 1, 3}, 1), d({3, 3}, 1);
  for_each_operator([&](const std::string& name, auto f) {
    wrong_shape([&] { f(a, b); }, {name, "(2, 3)", "(2, 4)"});
    wrong_shape([&] { f(b, c); }, {name, "(2, 4)", "(3, 2, 1, 3)"});
    wrong_shape([&] { f(d, a); }, {name, "(3, 3)", "(2, 3)"});
  });
}

// Reductions --------------------------------------------------------------------------------------

TEST_CASE_TEMPLATE("sum, mean and squared_norm over everything", S, float, double) {
  for (const Shape& shape : {Shape{}, {1}, {7}, {3, 5}, {2, 3, 4, 5}, {0, 3}, {70'000}}) {
    CAPTURE(shape);
    const auto x = random_tensor<S>(shape, 1, 0, 1);
    double total = 0, squares = 0;
    for_each_place(shape, [&](const Place& p) {
      total += at(x, p);
      squares += at(x, p) * at(x, p);
    });
    check_values(sum(x), {}, [&](const Place&) { return total; });
    check_values(squared_norm(x), {}, [&](const Place&) { return squares; });
    if (shape.size() > 0)
      check_values(mean(x), {},
                   [&](const Place&) { return total / static_cast<double>(shape.size()); });
  }
}

TEST_CASE_TEMPLATE("sum and mean over one axis", S, float, double) {
  for (const Shape& shape : {Shape{7}, {3, 5}, {2, 3, 4}, {2, 1, 3}, {3, 0, 2}, {2, 2, 2, 2, 2, 3}})
    for (Index axis = 0; axis < shape.rank(); ++axis)
      for (const bool keepdim : {false, true}) {
        CAPTURE(shape);
        CAPTURE(axis);
        CAPTURE(keepdim);
        const auto x = random_tensor<S>(shape, 1, 0, 1);
        const Shape result = without(shape, axis, keepdim);
        const auto total = [&](const Place& p) {
          Place q{};  // p with a place on the axis put in
          for (Index d = 0; d < shape.rank(); ++d)
            if (d != axis)
              q[static_cast<std::size_t>(d)] =
                  p[static_cast<std::size_t>(keepdim || d < axis ? d : d - 1)];
          double s = 0;
          for (Index& k = q[static_cast<std::size_t>(axis)]; k < shape[axis]; ++k) s += at(x, q);
          return s;
        };
        check_values(sum(x, axis, keepdim), result, total);
        if (shape[axis] > 0)
          check_values(mean(x, axis, keepdim), result,
                       [&](const Place& p) { return total(p) / static_cast<double>(shape[axis]); });
      }
  const auto x = random_tensor<S>({2, 3}, 1);
  CHECK(sum(x, 0).shape() == Shape{3});  // keepdim is false unless asked for
  CHECK(mean(x, 1).shape() == Shape{2});
}

TEST_CASE("VJPs of reductions") {
  for (const Shape& shape : {Shape{}, {1}, {7}, {3, 5}, {2, 3, 4}}) {
    const std::string name = deq::message(" of ", shape);
    const Tensor x = random_tensor(shape, 1, 0.5, 2);
    gradient_check("sum" + name, sum_of, x);
    gradient_check("mean" + name, mean_of, x);
    gradient_check("squared_norm" + name, squared_norm_of, x);
    for (Index axis = 0; axis < shape.rank(); ++axis)
      for (const bool keepdim : {false, true}) {
        gradient_check("sum over an axis" + name, sum_over(axis, keepdim), x);
        gradient_check("mean over an axis" + name, mean_over(axis, keepdim), x);
      }
  }
  gradient_check("sum of nothing", sum_of, random_tensor({0, 3}, 1));
}

TEST_CASE("an axis that is not there is named with the shape") {
  const Tensor x({2, 3}, 1), number(Shape{}, 1);
  wrong_shape([&] { sum(x, 2); }, {"sum", "axis 2", "(2, 3)"});
  wrong_shape([&] { sum(x, -1); }, {"sum", "axis -1", "(2, 3)"});
  wrong_shape([&] { mean(x, 2, true); }, {"mean", "axis 2", "(2, 3)"});
  wrong_shape([&] { mean(number, 0); }, {"mean", "axis 0", "()"});
}

// Softmax and losses ------------------------------------------------------------------------------

TEST_CASE_TEMPLATE("softmax and log_softmax over the last dimension", S, float, double) {
  for (const Shape& shape : row_shapes) {
    CAPTURE(shape);
    const auto x = random_tensor<S>(shape, 1, -3, 3);
    const auto log_p = [&](const Place& p) { return at(x, p) - log_sum_exp(x, p); };
    check_values(softmax(x), shape, [&](const Place& p) { return std::exp(log_p(p)); });
    // Of one number it is 0, which has no relative accuracy.
    if (shape[-1] > 1) check_values(log_softmax(x), shape, log_p);
  }
  CHECK(log_softmax(random_tensor<S>({1}, 1)).item() == 0);
}

TEST_CASE("softmax: no overflow, impossible classes, NaN stays in its row") {
  const Tensor x({4, 2}, {1000, 1000, -1000, 1000, -infinity, 0, not_a_number, 0});
  const std::vector<double> p = softmax(x).to_host(), log_p = log_softmax(x).to_host();
  CHECK(p[0] == doctest::Approx(0.5).epsilon(1e-15));
  CHECK(log_p[1] == doctest::Approx(-std::log(2)).epsilon(1e-15));
  CHECK(p[2] == 0);
  CHECK(log_p[2] == -2000);
  CHECK(p[3] == 1);
  CHECK(p[4] == 0);
  CHECK(log_p[4] == -infinity);
  CHECK(p[5] == 1);
  CHECK(std::isnan(p[6]));
  CHECK(std::isnan(p[7]));
}

TEST_CASE_TEMPLATE("softmax_cross_entropy is the mean of -log p of the labels", S, float, double) {
  struct Case {
    Shape shape;
    std::vector<int> labels;
  };
  for (const Case& c : {Case{{1, 2}, {1}}, Case{{3, 4}, {3, 0, 3}}, Case{{2, 33}, {32, 5}}}) {
    const auto x = random_tensor<S>(c.shape, 1, -3, 3);
    double loss = 0;
    for (std::size_t n = 0; n < c.labels.size(); ++n) {
      const auto row = static_cast<Index>(n);
      loss += log_sum_exp(x, Place{row}) - at(x, row, c.labels[n]);
    }
    check_values(softmax_cross_entropy(x, c.labels), {},
                 [&](const Place&) { return loss / static_cast<double>(c.labels.size()); });
  }
  // Ten equal logits, however large: log 10 nats.
  const TensorOf<S> equal({2, 10}, S(1e4));
  check_values(softmax_cross_entropy(equal, std::vector<int>{0, 9}), {},
               [](const Place&) { return std::log(10); });
  // One class is always right.
  const auto certain = random_tensor<S>({3, 1}, 1);
  Recorded recorded(cross_entropy_with({0, 0, 0}), certain);
  CHECK(recorded.y().item() == 0);
  CHECK(same_bits(recorded.vjp(TensorOf<S>(Shape{}, S(2))).front(), TensorOf<S>({3, 1}, S(0))));
}

TEST_CASE("labels are any list of integers") {
  const Tensor x = random_tensor({3, 4}, 1);
  const Tensor loss = softmax_cross_entropy(x, std::vector<int>{3, 0, 2});
  CHECK(same_bits(softmax_cross_entropy(x, std::vector<std::uint8_t>{3, 0, 2}), loss));
  CHECK(same_bits(softmax_cross_entropy(x, std::vector<Index>{3, 0, 2}), loss));
  CHECK(same_bits(softmax_cross_entropy(x, std::array<unsigned long long, 3>{3, 0, 2}), loss));
}

TEST_CASE_TEMPLATE("mse_loss is the mean of the squares of the differences", S, float, double) {
  for (const Shape& shape : {Shape{}, {5}, {3, 4}, {2, 3, 2, 2}}) {
    const auto a = random_tensor<S>(shape, 1), b = random_tensor<S>(shape, 2);
    double total = 0;
    for_each_place(shape,
                   [&](const Place& p) { total += (at(a, p) - at(b, p)) * (at(a, p) - at(b, p)); });
    check_values(mse_loss(a, b), {},
                 [&](const Place&) { return total / static_cast<double>(shape.size()); });
  }
}

TEST_CASE("VJPs of softmax and losses") {
  for (const Shape& shape : {Shape{5}, {4, 10}, {2, 3, 7}, {0, 3}}) {
    gradient_check("softmax", softmax_of, random_tensor(shape, 1, -3, 3));
    gradient_check("log_softmax", log_softmax_of, random_tensor(shape, 1, -3, 3));
  }
  gradient_check("softmax_cross_entropy", cross_entropy_with({3, 0, 3}),
                 random_tensor({3, 4}, 1, -3, 3));
  for (const Shape& shape : {Shape{}, {3, 4}})
    gradient_check("mse_loss", mse_loss_of, random_tensor(shape, 1), random_tensor(shape, 2));
}

TEST_CASE("softmax and losses name what does not fit") {
  const Tensor x({2, 3}, 1), number(Shape{}, 1), no_classes({2, 0}, 1), cube({2, 3, 4}, 1);
  wrong_shape([&] { softmax(number); }, {"softmax", "()"});
  wrong_shape([&] { log_softmax(no_classes); }, {"log_softmax", "(2, 0)"});
  wrong_shape([&] { mse_loss(x, Tensor({3}, 1)); }, {"mse_loss", "(2, 3)", "(3)"});
  const auto cross_entropy = [](const Tensor& logits, const auto& labels) {
    return [&] { softmax_cross_entropy(logits, labels); };
  };
  const std::vector<int> one{0}, two{0, 1}, none;
  wrong_shape(cross_entropy(x, one), {"softmax_cross_entropy", "(2, 3)", "1 labels"});
  wrong_shape(cross_entropy(cube, two), {"softmax_cross_entropy", "(2, 3, 4)", "2 labels"});
  wrong_shape(cross_entropy(Tensor({0, 3}, 1), none), {"softmax_cross_entropy", "(0, 3)"});
  const auto outside = [&](const auto& labels, const std::string& label) {
    check_error<deq::InvalidArgument>(cross_entropy(x, labels), {"label " + label, "[0, 3)"});
  };
  outside(std::vector<int>{0, 3}, "3");
  outside(std::vector<int>{-1, 0}, "-1");
  outside(std::vector<std::uint8_t>{0, 200}, "200");  // a number, not a character
  outside(std::vector<std::uint64_t>{0, std::uint64_t{1} << 63}, "9223372036854775808");
  using Labels = deq::Labels<deq::Cpu<double>>;
  outside(Labels(std::vector<int>{0, 3}), "3");
  check_error<deq::InvalidArgument>([] { Labels(std::vector<int>{0, -1}); }, {"Labels", "-1"});
}

TEST_CASE("Labels are a handle: all copies get new ones, in the same memory") {
  deq::Labels<deq::Cpu<double>> labels(std::vector<int>{0, 2, 1});
  const deq::Labels<deq::Cpu<double>> copy = labels;
  CHECK(copy.largest() == 2);
  const Index* const place = copy.data();
  labels.assign(std::vector<int>{1, 1, 0});
  CHECK(copy.data() == place);
  CHECK(copy.largest() == 1);
  CHECK(std::vector<Index>(copy.host().begin(), copy.host().end()) == std::vector<Index>{1, 1, 0});
  CHECK(std::equal(copy.host().begin(), copy.host().end(), copy.data()));
}

// All of them -------------------------------------------------------------------------------------

TEST_CASE_TEMPLATE("broadcasting, reductions and losses do not depend on threads", S, float,
                   double) {
  const auto x = random_tensor<S>({4, 6, 60, 60}, 1),
             mask = random_tensor<S>({4, 6, 1, 1}, 2, 1, 2);
  const auto bias = random_tensor<S>({6, 1, 1}, 3, 1, 2), rows = random_tensor<S>({20, 5000}, 4);
  const auto row = random_tensor<S>({5000}, 5, 1, 2), number = random_tensor<S>({}, 6, 1, 2);
  for_each_operator([&](const std::string& name, auto f) {
    check_threads(name + " with a mask", f, x, mask);
    check_threads(name + " with a bias", f, x, bias);
    check_threads(name + " with a row", f, rows, row);
    check_threads(name + " with a number", f, rows, number);
  });
  for (const auto& axis : {Index{0}, Index{1}}) {
    check_threads("sum", sum_over(axis, false), rows);
    check_threads("mean", mean_over(axis, true), rows);
  }
  check_threads("sum", sum_of, rows);
  check_threads("mean", mean_of, rows);
  check_threads("squared_norm", squared_norm_of, rows);
  check_threads("softmax", softmax_of, rows);
  check_threads("log_softmax", log_softmax_of, rows);
  check_threads("softmax_cross_entropy", cross_entropy_with(std::vector<int>(20, 4999)), rows);
  check_threads("mse_loss", mse_loss_of, rows, random_tensor<S>({20, 5000}, 7));
}

TEST_CASE_TEMPLATE("broadcasting, reductions of axes and softmax treat samples on their own", S,
                   float, double) {
  const auto x = random_tensor<S>({3, 2, 3, 5}, 1), bias = random_tensor<S>({2, 1, 1}, 2, 1, 2);
  for_each_operator([&](const std::string& name, auto f) {
    check_samples(
        name + " with a bias", [&](const auto& v) { return f(v, bias); }, x);
    check_samples(
        name + " with statistics", [&](const auto& v) { return f(v, 2 + mean(v, 1, true)); }, x);
  });
  check_samples("sum", sum_over(2, false), x);
  check_samples("mean", mean_over(3, true), x);
  check_samples("softmax", softmax_of, x);
  check_samples("log_softmax", log_softmax_of, x);
}

// Variational dropout -----------------------------------------------------------------------------

TEST_CASE("a dropout mask multiplies whole channels, also of the gradient") {
  const Shape channels{3, 8, 1, 1}, full{3, 8, 2, 3};
  const auto mask = deq::dropout_mask<deq::Cpu<double>>(channels, 0.25, {.seed = 5, .step = 7});
  const auto dropped = [&](const auto& x) { return x * mask; };
  const Tensor x = random_tensor(full, 1);
  Index zeros = 0;
  for (const double m : mask.to_host()) {
    CHECK((m == 0 || m == 1 / 0.75));
    zeros += m == 0;
  }
  CHECK(zeros > 0);
  CHECK(zeros < mask.size());
  const auto by_hand = [&](const Tensor& t) {
    return [&](const Place& p) { return at(mask, p[0], p[1], 0, 0) * at(t, p); };
  };
  check_values(dropped(x), full, by_hand(x), 0);
  const Tensor c = random_tensor(full, 2);
  check_values(Recorded(dropped, x).vjp(c).front(), full, by_hand(c), 0);
  gradient_check("dropout", dropped, x);
}

TEST_CASE("a dropout mask drops with probability p, within four standard errors") {
  const Index n = 20'000;
  for (const double p : {0.1, 0.5, 0.9}) {
    const auto mask = deq::dropout_mask<deq::Cpu<double>>({4, n / 4}, p, {.seed = 3});
    double dropped = 0;
    for (const double m : mask.to_host()) dropped += m == 0;
    CHECK(std::abs(dropped / n - p) < 4 * std::sqrt(p * (1 - p) / n));
  }
  CHECK(same_bits(deq::dropout_mask<deq::Cpu<double>>({2, 3}, 0, {}), Tensor({2, 3}, 1)));
}

TEST_CASE("a dropout mask is a function of seed, step, layer and the id of the sample") {
  const auto mask = [](const deq::DropoutKey& key, std::vector<Index> ids) {
    return deq::dropout_mask<deq::Cpu<double>>({static_cast<Index>(ids.size()), 64}, 0.5, key, ids);
  };
  const deq::DropoutKey key{.seed = 1, .step = 2, .layer = 3};
  const Tensor batch = mask(key, {40, 7, 41});
  CHECK(same_bits(mask(key, {7}), batch.rows(1, 1)));  // in whatever batch it is
  CHECK(same_bits(deq::dropout_mask<deq::Cpu<double>>({2, 64}, 0.5, key, 40),
                  concat(0, batch.rows(0, 1), batch.rows(2, 1))));
  CHECK_FALSE(same_bits(mask(key, {8}), mask(key, {7})));
  CHECK_FALSE(same_bits(mask({.seed = 9, .step = 2, .layer = 3}, {7}), mask(key, {7})));
  CHECK_FALSE(same_bits(mask({.seed = 1, .step = 9, .layer = 3}, {7}), mask(key, {7})));
  CHECK_FALSE(same_bits(mask({.seed = 1, .step = 2, .layer = 9}, {7}), mask(key, {7})));

  const std::vector<Index> two{0, 1};
  wrong_shape(
      [&] {
        deq::dropout_mask<deq::Cpu<double>>({3, 4}, 0.5, key, two);
      },
      {"dropout_mask", "(3, 4)", "2"});
  for (const double p : {-0.1, 1.0, not_a_number})
    check_error<deq::InvalidArgument>(
        [&] {
          deq::dropout_mask<deq::Cpu<double>>({1, 4}, p, key);
        },
        {"dropout_mask", "[0, 1)"});
}
