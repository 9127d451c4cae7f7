// SPDX-License-Identifier: MIT
// deq/tape/ops/conv.hpp, and the normalisation of its weights in deq/tape/ops/norm.hpp
#include <cmath>
#include <string>

#include <doctest/doctest.h>

#include "support/gradient_check.hpp"

using namespace deq_test;

namespace {

/// One convolution: its extents, and random data for it.
struct Convolution {
  Shape image, kernel;  // (N, C, H, W), (O, C, kh, kw)
  Index stride = 1, padding = 0;

  deq::Conv2dOptions options() const { return {.stride = stride, .padding = padding}; }
  std::string name() const {
    return deq::message(image, " by ", kernel, ", stride ", stride, ", padding ", padding);
  }
  template <class S>
  TensorOf<S> x() const {
    return random_tensor<S>(image, 1);
  }
  template <class S>
  TensorOf<S> w() const {
    return random_tensor<S>(kernel, 2);
  }
  template <class S>
  TensorOf<S> bias() const {
    return random_tensor<S>({kernel[0]}, 3);
  }
  auto with_options() const {
    return [o = options()](const auto& x, const auto& w, const auto&... bias) {
      return conv2d(x, w, bias..., o);
    };
  }
};

const Convolution small[]{
    {{2, 3, 4, 5}, {2, 3, 1, 1}},        // the image is the matrix of its patches
    {{2, 2, 5, 5}, {3, 2, 1, 1}, 2},     // it no longer is
    {{1, 2, 3, 3}, {2, 2, 1, 1}, 1, 2},  // output pixels that see zeros alone
    {{2, 2, 5, 7}, {3, 2, 3, 3}},       {{2, 3, 5, 4}, {2, 3, 3, 3}, 1, 1},
    {{2, 2, 7, 5}, {3, 2, 3, 3}, 2, 1},  // odd sizes halved: 4 x 3
    {{1, 2, 6, 8}, {2, 2, 3, 3}, 2, 1},  // even sizes halved: a line of padding is never seen
    {{1, 1, 7, 7}, {2, 1, 3, 3}, 3},     // stride = kernel, a column left over
    {{1, 1, 8, 7}, {1, 1, 2, 2}, 3, 1},  // stride > kernel: pixels that nobody sees
    {{2, 2, 6, 5}, {2, 2, 5, 5}, 1, 2}, {{1, 2, 9, 6}, {2, 2, 5, 5}, 2, 2},
    {{2, 2, 5, 6}, {2, 2, 5, 6}},                                      // one output pixel
    {{2, 2, 4, 5}, {2, 2, 1, 4}, 1, 1},                                // rectangular
    {{2, 2, 4, 5}, {2, 2, 3, 2}, 2, 1}, {{3, 4, 1, 1}, {2, 4, 1, 1}},  // images of one pixel
    {{2, 2, 1, 1}, {3, 2, 3, 3}, 1, 1}, {{2, 2, 1, 1}, {3, 2, 5, 5}, 2, 2},
    {{0, 2, 3, 3}, {2, 2, 3, 3}, 1, 1},  // no samples
};
/// Large enough for Eigen's products, for several blocks of channels and for several threads.
const Convolution large[]{
    {{5, 20, 13, 11}, {24, 20, 3, 3}, 1, 1},
    {{5, 20, 13, 11}, {24, 20, 3, 3}, 2, 1},
    {{5, 70, 9, 9}, {30, 70, 1, 1}},
    {{3, 5, 12, 12}, {8, 5, 5, 5}, 1, 2},
};

template <class S>
void check_forward(const Convolution& c) {
  CAPTURE(c.name());
  const auto x = c.x<S>(), w = c.w<S>(), bias = c.bias<S>();
  const Index lines = c.image[2], columns = c.image[3];
  const Shape shape{c.image[0], c.kernel[0], (lines + 2 * c.padding - c.kernel[2]) / c.stride + 1,
                    (columns + 2 * c.padding - c.kernel[3]) / c.stride + 1};
  const auto correlation = [&](const Place& p) {
    double sum = 0;
    for (Index channel = 0; channel < c.kernel[1]; ++channel)
      for (Index ky = 0; ky < c.kernel[2]; ++ky)
        for (Index kx = 0; kx < c.kernel[3]; ++kx) {
          const Index line = p[2] * c.stride + ky - c.padding;
          const Index column = p[3] * c.stride + kx - c.padding;
          if (line >= 0 && line < lines && column >= 0 && column < columns)
            sum += at(w, p[1], channel, ky, kx) * at(x, p[0], channel, line, column);
        }
    return sum;
  };
  check_values(conv2d(x, w, c.options()), shape, correlation);
  check_values(conv2d(x, w, bias, c.options()), shape,
               [&](const Place& p) { return correlation(p) + at(bias, p[1]); });
}

}  // namespace

TEST_CASE_TEMPLATE("conv2d is the cross-correlation", S, float, double) {
  for (const Convolution& c : small) check_forward<S>(c);
  for (const Convolution& c : large) check_forward<S>(c);
}

TEST_CASE("conv2d has stride 1 and no padding unless told otherwise") {
  const Convolution c{{1, 2, 4, 4}, {3, 2, 3, 3}};
  const Tensor x = c.x<double>(), w = c.w<double>(), bias = c.bias<double>();
  CHECK(same_bits(conv2d(x, w), conv2d(x, w, {.stride = 1, .padding = 0})));
  CHECK(same_bits(conv2d(x, w, bias), conv2d(x, w, bias, {.stride = 1, .padding = 0})));
}

TEST_CASE("VJPs of conv2d") {
  for (const Convolution& c : small) {
    gradient_check(c.name(), c.with_options(), c.x<double>(), c.w<double>());
    gradient_check(c.name(), c.with_options(), c.x<double>(), c.w<double>(), c.bias<double>());
  }
  // Two blocks of input channels, and products that Eigen computes.
  const Convolution c{{2, 9, 4, 3}, {5, 9, 3, 3}, 1, 1};
  gradient_check("blocks", c.with_options(), c.x<double>(), c.w<double>(), c.bias<double>());
  // An image smaller than the stride.
  for (const Convolution& tiny :
       {Convolution{{2, 3, 1, 1}, {4, 3, 3, 3}, 2, 1}, {{2, 3, 4, 1}, {4, 3, 3, 3}, 3, 1}})
    gradient_check(tiny.name(), tiny.with_options(), tiny.x<double>(), tiny.w<double>());
}

TEST_CASE_TEMPLATE("conv2d does not depend on threads", S, float, double) {
  for (const Convolution& c : large)
    check_threads(c.name(), c.with_options(), c.x<S>(), c.w<S>(), c.bias<S>());
}

TEST_CASE_TEMPLATE("conv2d: the bits of a sample do not depend on the others", S, float, double) {
  const auto check = [](const Convolution& c) {
    const auto w = c.w<S>(), bias = c.bias<S>();
    const auto layer = [&](const auto& x) { return conv2d(x, w, bias, c.options()); };
    check_samples(c.name(), layer, c.x<S>());
  };
  for (const Convolution& c : small) check(c);
  for (const Convolution& c : large) check(c);
}

TEST_CASE("conv2d names what does not fit") {
  const Tensor x({2, 3, 4, 4}, 1), w({5, 3, 3, 3}, 1), matrix({3, 4}, 1), bias({3}, 1);
  const auto wrong = [&](const Tensor& image, const Tensor& kernel,
                         std::initializer_list<std::string> parts) {
    check_error<deq::ShapeError>([&] { conv2d(image, kernel); }, parts);
  };
  wrong(x, Tensor({5, 2, 3, 3}, 1), {"conv2d", "(2, 3, 4, 4)", "(5, 2, 3, 3)"});
  wrong(matrix, w, {"conv2d", "(3, 4)", "(5, 3, 3, 3)"});
  wrong(x, matrix, {"conv2d", "(2, 3, 4, 4)", "(3, 4)"});
  wrong(x, Tensor({5, 3, 5, 1}, 1), {"conv2d", "larger", "(2, 3, 4, 4)", "(5, 3, 5, 1)"});
  wrong(x, Tensor({5, 3, 1, 5}, 1), {"conv2d", "larger", "(2, 3, 4, 4)", "(5, 3, 1, 5)"});
  check_error<deq::ShapeError>([&] { conv2d(x, w, bias); },
                               {"conv2d", "bias", "(5, 3, 3, 3)", "(3)"});
  check_error<deq::InvalidArgument>([&] { conv2d(x, w, {.stride = 0}); }, {"conv2d", "stride"});
  check_error<deq::InvalidArgument>([&] { conv2d(x, w, {.padding = -1}); }, {"padding", "-1"});
}

// Weight normalisation ----------------------------------------------------------------------------

namespace {
const auto weight_norm_of = [](const auto& v, const auto& g) { return weight_norm(v, g); };
}  // namespace

TEST_CASE_TEMPLATE("weight_norm gives every output channel the length g", S, float, double) {
  const auto check = [](const Shape& shape, const Shape& lengths) {
    CAPTURE(shape);
    const auto v = random_tensor<S>(shape, 1), g = random_tensor<S>(lengths, 2);
    check_values(weight_norm(v, g), shape, [&](const Place& p) {
      double squares = 0;
      for_each_place(shape, [&](const Place& q) {
        if (q[0] == p[0]) squares += at(v, q) * at(v, q);
      });
      return at(g, p[0], 0, 0, 0) * at(v, p) / std::sqrt(squares);
    });
  };
  check({4, 3, 3, 3}, {4, 1, 1, 1});
  check({1, 1, 1, 1}, {1, 1, 1, 1});
  check({5, 7}, {5, 1});
  check({5, 7}, {5});
  check({6, 10, 5, 5}, {6, 1, 1, 1});
}

TEST_CASE("VJPs of weight_norm, alone and as the weight of a convolution") {
  for (const Shape& shape : {Shape{3, 2, 3, 3}, {1, 5, 1, 1}})
    gradient_check("weight_norm", weight_norm_of, random_tensor(shape, 1),
                   random_tensor({shape[0], 1, 1, 1}, 2));
  gradient_check(
      "conv2d",
      [](const auto& x, const auto& v, const auto& g, const auto& bias) {
        return conv2d(x, weight_norm(v, g), bias, {.padding = 1});
      },
      random_tensor({2, 2, 4, 3}, 1), random_tensor({3, 2, 3, 3}, 2),
      random_tensor({3, 1, 1, 1}, 3), random_tensor({3}, 4));
}

TEST_CASE("weight_norm of one number is its sign times g, whose derivative is 0") {
  const Tensor v({3, 1}, {0.5, -2, 3}), g({3, 1}, {2, 3, -4});
  Recorded recorded(weight_norm_of, v, g);
  check_values(recorded.y(), {3, 1},
               [&](const Place& p) { return std::copysign(1, at(v, p)) * at(g, p); });
  const auto gradients = recorded.vjp(Tensor({3, 1}, 1));
  // c - u (u c) with u = v / |v| rounded, times g / |v|
  for (Index o = 0; o < 3; ++o)
    CHECK(std::abs(at(gradients[0], o, 0)) <= 4e-16 * std::abs(at(g, o, 0) / at(v, o, 0)));
  check_values(gradients[1], {3, 1}, [&](const Place& p) { return std::copysign(1, at(v, p)); });
}

TEST_CASE("weight_norm does not depend on threads; its rows are as independent as samples") {
  check_threads("weight_norm", weight_norm_of, random_tensor<float>({40, 50, 3, 3}, 1),
                random_tensor<float>({40, 1, 1, 1}, 2));
  const Tensor g({3, 1, 1, 1}, 1.5);
  check_samples(
      "weight_norm", [&](const auto& v) { return weight_norm(v, g.rows(0, v.extent(0))); },
      random_tensor({3, 4, 3, 3}, 1));
}

TEST_CASE("weight_norm of zeros is NaN, and names shapes that do not fit") {
  const Tensor zeros({1, 2}, 0), one({1, 1}, 1), v({4, 3, 3, 3}, 1);
  const Tensor normalized = weight_norm(zeros, one);
  CHECK(std::isnan(normalized.data()[0]));
  const auto wrong = [](const Tensor& a, const Tensor& b, const char* a_name, const char* b_name) {
    check_error<deq::ShapeError>([&] { weight_norm(a, b); }, {"weight_norm", a_name, b_name});
  };
  wrong(v, Tensor({3, 1, 1, 1}, 1), "(4, 3, 3, 3)", "(3, 1, 1, 1)");
  wrong(v, Tensor({4, 3, 1, 1}, 1), "(4, 3, 3, 3)", "(4, 3, 1, 1)");
  wrong(v, Tensor(Shape{}, 1), "(4, 3, 3, 3)", "()");
  wrong(Tensor(Shape{}, 1), one, "()", "(1, 1)");
}
