// SPDX-License-Identifier: MIT
// deq/tape/ops/nhwc.hpp: every operation against the NCHW operations that it stands for
#include <array>
#include <atomic>
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "support/gradient_check.hpp"

using namespace deq_test;
using deq::BatchNormMode;
namespace nhwc = deq::nhwc;

namespace {

template <class S>
void check_close(const TensorOf<S>& y, const TensorOf<S>& expected,
                 double tolerance = rounding<S>) {
  check_values(
      y, expected.shape(), [&](const Place& p) { return at(expected, p); }, tolerance);
}

/// One conv_norm: its extents, and random data for it.
struct Case {
  Shape image, kernel;  // (N, C, H, W), (O, C, kh, kw)
  Index groups;
  deq::Conv2dOptions conv = {};

  nhwc::ConvNormOptions options(bool relu) const {
    return {.groups = groups, .conv = conv, .relu = relu};
  }
  std::string name() const {
    return deq::message(image, " by ", kernel, ", stride ", conv.stride, ", padding ",
                        conv.padding);
  }
  Shape out() const {
    return {image[0], kernel[0], (image[2] + 2 * conv.padding - kernel[2]) / conv.stride + 1,
            (image[3] + 2 * conv.padding - kernel[3]) / conv.stride + 1};
  }
  template <class S>
  TensorOf<S> mask() const {
    return random_tensor<S>({image[0], kernel[0], 1, 1}, 5, 0.5, 1.5);
  }
};

const Case cases[]{
    {{2, 3, 5, 4}, {4, 3, 3, 3}, 2, {.padding = 1}},     // direct
    {{2, 9, 5, 7}, {12, 9, 3, 3}, 3, {.padding = 1}},    // tiles that reach beyond
    {{3, 8, 4, 4}, {16, 8, 3, 3}, 4, {.padding = 1}},    // small tiles, several samples
    {{2, 24, 9, 6}, {20, 24, 3, 3}, 5, {.padding = 1}},  // a vector beyond the last channel
    {{2, 10, 7, 8}, {8, 10, 3, 3}, 8, {.stride = 2, .padding = 1}},
    {{2, 6, 4, 5}, {9, 6, 1, 1}, 3},
    {{1, 8, 6, 6}, {8, 8, 3, 3}, 1},  // no padding
};
/// Several pieces of work a sample.
const Case large{{3, 24, 32, 32}, {40, 24, 3, 3}, 8, {.padding = 1}};

/// relu(GN((x * w) mask + addend) scale + shift + residual) of NCHW images by NCHW operations.
template <class X>
X reference(const Case& c, bool relu_last, const X& mask, const X& x, const X& w, const X& scale,
            const X& shift, const X& addend, const X& residual) {
  const X y = group_norm(conv2d(x, w, c.conv) * mask + addend, c.groups, scale, shift) + residual;
  return relu_last ? relu(y) : y;
}
/// The same by conv_norm.
template <class X>
X fused(const Case& c, bool relu, const X& mask, const X& x, const X& w, const X& scale,
        const X& shift, const X& addend, const X& residual) {
  const X added = nhwc::from_nchw(addend), rest = nhwc::from_nchw(residual);
  return nhwc::to_nchw(nhwc::conv_norm(
      nhwc::from_nchw(x), w, c.options(relu),
      {.scale = &scale, .shift = &shift, .mask = &mask, .addend = &added, .residual = &rest}));
}

/// Running statistics of a batch normalisation.
template <class S>
deq::BatchNormState<deq::Cpu<S>> random_state(Index channels) {
  deq::BatchNormState<deq::Cpu<S>> state(channels);
  state.running_mean = random_tensor<S>({channels}, 11);
  state.running_var = random_tensor<S>({channels}, 12, 0.5, 2);
  return state;
}

template <class S, class Check>
void with_data(const Case& c, Check check) {
  const Index channels = c.kernel[0];
  check(random_tensor<S>(c.image, 1), random_tensor<S>(c.kernel, 2),
        random_tensor<S>({channels}, 3, 0.5, 2), random_tensor<S>({channels}, 4),
        random_tensor<S>(c.out(), 6), random_tensor<S>(c.out(), 7));
}

}  // namespace

TEST_CASE_TEMPLATE("from_nchw and to_nchw are inverse, and channels become neighbours", S, float,
                   double) {
  for (const Shape& shape : {Shape{2, 3, 4, 5}, {1, 17, 9, 3}, {3, 24, 8, 8}, {0, 2, 3, 3}}) {
    CAPTURE(shape);
    const auto x = random_tensor<S>(shape, 1);
    const auto y = nhwc::from_nchw(x);
    check_values(y, {shape[0], shape[2], shape[3], shape[1]},
                 [&](const Place& p) { return at(x, p[0], p[3], p[1], p[2]); });
    CHECK(same_bits(nhwc::to_nchw(y), x));
    const auto frozen = x.frozen();  // remembers both
    CHECK(same_bits(nhwc::from_nchw(frozen), y));
    CHECK(same_bits(nhwc::to_nchw(frozen), nhwc::to_nchw(x)));
    CHECK(same_bits(nhwc::from_nchw(frozen), y));
  }
}

TEST_CASE("VJPs of from_nchw and to_nchw") {
  const Tensor x = random_tensor({2, 3, 2, 4}, 1);
  const auto from = [](const auto& v) { return nhwc::from_nchw(v); };
  const auto to = [](const auto& v) { return nhwc::to_nchw(v); };
  gradient_check("from_nchw", from, x);
  gradient_check("to_nchw", to, x);
  check_samples("from_nchw", from, x);
  check_samples("to_nchw", to, x);
}

TEST_CASE_TEMPLATE("conv_norm is the operations that it stands for", S, float, double) {
  for (const Case& c : cases)
    with_data<S>(c, [&](const auto&... data) {
      CAPTURE(c.name());
      for (const bool relu : {false, true})
        check_close(fused(c, relu, c.mask<S>(), data...), reference(c, relu, c.mask<S>(), data...));
    });
  with_data<S>(large, [&](const auto&... data) {
    check_close(fused(large, true, large.mask<S>(), data...),
                reference(large, true, large.mask<S>(), data...));
  });
}

TEST_CASE("conv_norm: every part may be left out") {
  const Case& c = cases[1];
  with_data<double>(c, [&](const Tensor& x, const Tensor& w, const Tensor& scale,
                           const Tensor& shift, const Tensor& addend, const Tensor& residual) {
    const Tensor mask = c.mask<double>(), added = nhwc::from_nchw(addend),
                 rest = nhwc::from_nchw(residual);
    const Tensor conv = conv2d(x, w, c.conv);
    const auto check = [&](const nhwc::ConvNormParts<Tensor>& parts, const Tensor& expected) {
      check_close(nhwc::to_nchw(nhwc::conv_norm(nhwc::from_nchw(x), w, c.options(false), parts)),
                  expected);
    };
    check({}, group_norm(conv, c.groups));
    check({.scale = &scale, .shift = &shift}, group_norm(conv, c.groups, scale, shift));
    check({.mask = &mask}, group_norm(conv * mask, c.groups));
    check({.addend = &added}, group_norm(conv + addend, c.groups));
    check({.residual = &rest}, group_norm(conv, c.groups) + residual);
  });
}

TEST_CASE("VJPs of conv_norm") {
  for (const Case& c : cases) {
    if (c.image.size() > 700) continue;  // finite differences take their time
    with_data<double>(c, [&](const auto&... data) {
      for (const bool relu : {false, true})
        gradient_check(
            c.name(), [&](const auto&... operands) { return fused(c, relu, operands...); },
            c.mask<double>(), data...);
    });
  }
}

TEST_CASE("VJPs of conv_norm without a residual, where u alone knows what was rectified") {
  for (const Case& c : cases) {
    if (c.image.size() > 700) continue;
    with_data<double>(c, [&](const Tensor& x, const Tensor& w, const Tensor& scale,
                             const Tensor& shift, const Tensor& addend, const Tensor&) {
      for (const bool average : {false, true}) {
        auto options = c.options(true);
        options.average = average;
        const auto f = [&](const auto& mask, const auto& image, const auto& weight, const auto& a,
                           const auto& b, const auto& added) {
          return nhwc::conv_norm(image, weight, options,
                                 {.scale = &a, .shift = &b, .mask = &mask, .addend = &added});
        };
        gradient_check(c.name(), f, c.mask<double>(), nhwc::from_nchw(x), w, scale, shift * 0.9,
                       nhwc::from_nchw(addend));  // 0.9: away from the kinks
        // Without a mask the last VJP writes over u.
        const auto no_mask = [&](const auto& image, const auto& weight, const auto& a,
                                 const auto& b) {
          return nhwc::conv_norm(image, weight, options, {.scale = &a, .shift = &b});
        };
        gradient_check(c.name(), no_mask, nhwc::from_nchw(x), w, scale, shift * 0.9);
      }
    });
  }
}

/// The average over the pixels of conv_batch_norm, by itself or by one operation more.
template <class X>
X average(const Case& c, bool relu, bool fused, const X& x, const X& w, const X& scale,
          const X& shift) {
  auto state = random_state<typename X::Backend::Scalar>(c.kernel[0]);
  const X y = nhwc::conv_batch_norm(nhwc::from_nchw(x), w, state, BatchNormMode::train,
                                    {.conv = c.conv, .relu = relu, .average = fused},
                                    {.scale = &scale, .shift = &shift});
  if (fused) return y;
  return mean(reshape(y, {y.extent(0), y.extent(1) * y.extent(2), y.extent(3)}), 1);
}

TEST_CASE_TEMPLATE("an average over the pixels is what the mean of the image is, and so is its VJP",
                   S, float, double) {
  for (const Case& c : {cases[0], cases[2], cases[3], cases[4], large})
    with_data<S>(c, [&](const auto& x, const auto& w, const auto& scale, const auto& shift,
                        const auto&, const auto&) {
      CAPTURE(c.name());
      for (const bool relu : {false, true}) {
        const auto of = [&](bool fused) {
          return Recorded([&](const auto&... a) { return average(c, relu, fused, a...); }, x, w,
                          scale, shift);
        };
        auto ours = of(true), expected = of(false);
        check_close(ours.y(), expected.y());
        const auto cotangent = random_tensor<S>(ours.y().shape(), 9);
        const auto grad = ours.vjp(cotangent), expected_grad = expected.vjp(cotangent);
        for (std::size_t i = 0; i < grad.size(); ++i) {
          CAPTURE(i);
          check_close(grad[i], expected_grad[i]);
        }
      }
    });
}

TEST_CASE_TEMPLATE("VJPs of conv_norm are those of the operations that it stands for", S, float,
                   double) {
  for (const Case& c : {cases[3], cases[4], large})
    with_data<S>(c, [&](const auto&... data) {
      CAPTURE(c.name());
      const auto of = [&](auto f) {
        Recorded recorded(f, c.mask<S>(), data...);
        return recorded.vjp(random_tensor<S>(c.out(), 9));
      };
      const auto ours = of([&](const auto&... a) { return fused(c, false, a...); });
      const auto expected = of([&](const auto&... a) { return reference(c, false, a...); });
      for (std::size_t i = 0; i < ours.size(); ++i) {
        CAPTURE(i);
        check_close(ours[i], expected[i]);
      }
    });
}

TEST_CASE("conv_norm writes over no cotangent that somebody else has") {
  const Tensor image = random_tensor({2, 4, 4, 3}, 1), kernel = random_tensor({4, 3, 3, 3}, 2),
               c = random_tensor({2, 4, 4, 4}, 3);
  const nhwc::ConvNormOptions options{.groups = 2, .conv = {.padding = 1}, .relu = true};
  deq::Tape<deq::Cpu<double>> tape;
  using Var = deq::Var<deq::Cpu<double>>;
  const Var x = tape.input(image), w = tape.input(kernel);
  const Var y = nhwc::conv_norm(x, w, options), z = y * 2.0;
  const auto gradients = [&](std::vector<Var> wrt, const Tensor& cotangent, const Var& of) {
    std::vector<Tensor> grads;
    for (const Var& v : wrt) grads.emplace_back(v.shape());
    tape.vjp(of, cotangent, wrt, grads);
    return grads;
  };
  // The cotangent of y: the caller's, asked for beside the others, or the tape's own.
  const Tensor given = c.clone();
  const auto of_caller = gradients({x, w}, given, y);
  CHECK(same_bits(given, c));
  const Tensor half = c * 0.5;
  const auto asked_for = gradients({y, x, w}, half, z), own = gradients({x, w}, half, z);
  CHECK(same_bits(asked_for[0], c));
  for (const std::size_t i : {0U, 1U}) {
    CHECK(same_bits(own[i], of_caller[i]));
    CHECK(same_bits(asked_for[i + 1], of_caller[i]));
  }
}

TEST_CASE("conv_norm: image, addend and residual may be the same variable") {
  const Tensor x = random_tensor({2, 4, 4, 8}, 1), w = random_tensor({8, 8, 3, 3}, 2);
  gradient_check(
      "three times x",
      [](const auto& v, const auto& weight) {
        return nhwc::conv_norm(v, weight, {.groups = 2, .conv = {.padding = 1}},
                               {.addend = &v, .residual = &v});
      },
      x, w);
}

/// relu(BN(x * w + bias) scale + shift + residual) of NCHW images by NCHW operations, with
/// random_state().
template <class X>
X batch_reference(const Case& c, BatchNormMode mode, const X& x, const X& w, const X& scale,
                  const X& shift, const X& bias, const X& residual) {
  auto state = random_state<typename X::Backend::Scalar>(c.kernel[0]);
  return relu(batch_norm(conv2d(x, w, bias, c.conv), scale, shift, state, mode) + residual);
}
/// The same by conv_batch_norm.
template <class X>
X batch_fused(const Case& c, BatchNormMode mode, const X& x, const X& w, const X& scale,
              const X& shift, const X& bias, const X& residual) {
  auto state = random_state<typename X::Backend::Scalar>(c.kernel[0]);
  const X rest = nhwc::from_nchw(residual);
  return nhwc::to_nchw(
      nhwc::conv_batch_norm(nhwc::from_nchw(x), w, state, mode, {.conv = c.conv, .relu = true},
                            {.scale = &scale, .shift = &shift, .bias = &bias, .residual = &rest}));
}

TEST_CASE_TEMPLATE("conv_batch_norm is the operations that it stands for, and so is its VJP", S,
                   float, double) {
  for (const BatchNormMode mode : {BatchNormMode::train, BatchNormMode::evaluate})
    for (const Case& c : {cases[0], cases[1], cases[3], cases[4], cases[5], large})
      with_data<S>(c, [&](const auto& x, const auto& w, const auto& scale, const auto& shift,
                          const auto&, const auto& residual) {
        CAPTURE(c.name());
        const auto bias = random_tensor<S>({c.kernel[0]}, 10);
        const auto of = [&](auto f) {
          return Recorded([&](const auto&... a) { return f(c, mode, a...); }, x, w, scale, shift,
                          bias, residual);
        };
        auto ours = of([](const auto&... a) { return batch_fused(a...); });
        auto expected = of([](const auto&... a) { return batch_reference(a...); });
        check_close(ours.y(), expected.y());
        const auto cotangent = random_tensor<S>(c.out(), 9);
        const auto grad = ours.vjp(cotangent), expected_grad = expected.vjp(cotangent);
        for (std::size_t i = 0; i < grad.size(); ++i) {
          CAPTURE(i);
          if (mode == BatchNormMode::train && i == 4)  // the mean takes the bias away again
            CHECK(squared_norm(grad[i]).item() <= rounding<S> * squared_norm(cotangent).item());
          else
            check_close(grad[i], expected_grad[i]);
        }
      });
}

TEST_CASE("VJPs of conv_batch_norm") {
  const Case& c = cases[0];
  with_data<double>(c, [&](const Tensor& x, const Tensor& w, const Tensor& scale,
                           const Tensor& shift, const Tensor&, const Tensor& residual) {
    const Tensor bias = random_tensor({4}, 10);
    gradient_check(
        "training, the bias apart",
        [&](const auto& v, const auto& weight, const auto& a, const auto& b, const auto& r) {
          using X = std::remove_cvref_t<decltype(v)>;
          return batch_fused<X>(c, BatchNormMode::train, v, weight, a, b, X(bias), r);
        },
        x, w, scale, shift, residual);
    gradient_check(
        "evaluation",
        [&](const auto&... a) { return batch_fused(c, BatchNormMode::evaluate, a...); }, x, w,
        scale, shift, bias, residual);
  });
}

TEST_CASE("conv_batch_norm counts the batch into the running statistics, in training only") {
  const Case& c = cases[3];
  with_data<double>(c, [&](const Tensor& x, const Tensor& w, const auto&...) {
    auto ours = random_state<double>(20), expected = random_state<double>(20);
    nhwc::conv_batch_norm(nhwc::from_nchw(x), w, ours, BatchNormMode::train,
                          {.conv = c.conv, .momentum = 0.25});
    batch_norm(conv2d(x, w, c.conv), expected, BatchNormMode::train, 0.25);
    CHECK(ours.batches == 1);
    check_close(ours.running_mean, expected.running_mean);
    check_close(ours.running_var, expected.running_var);
    const Tensor mean = ours.running_mean;
    nhwc::conv_batch_norm(nhwc::from_nchw(x), w, ours, BatchNormMode::evaluate, {.conv = c.conv});
    CHECK(ours.batches == 1);
    CHECK(ours.running_mean.data() == mean.data());
  });
}

TEST_CASE_TEMPLATE("conv_norm depends neither on threads nor on other samples", S, float, double) {
  for (const Case& c : {cases[2], cases[3], cases[4], large})
    with_data<S>(c, [&](const auto& x, const auto& w, const auto& scale, const auto& shift,
                        const auto&, const auto&) {
      for (const bool average : {false, true}) {
        auto options = c.options(true);
        options.average = average;
        const auto f = [&](const auto& v, const auto& weight, const auto& a, const auto& b) {
          return nhwc::conv_norm(v, weight, options, {.scale = &a, .shift = &b});
        };
        check_threads(c.name(), f, nhwc::from_nchw(x), w, scale, shift);
        check_samples(
            c.name(),
            [&](const auto& v) {
              using X = std::remove_cvref_t<decltype(v)>;
              return f(v, X(w), X(scale), X(shift));
            },
            nhwc::from_nchw(x));
      }
    });
}

TEST_CASE("A large mean costs conv_norm no accuracy in its statistics") {
  const Case& c = cases[3];
  with_data<float>(c, [&](const auto& x, const auto& w, const auto&, const auto&,
                          const auto& addend, const auto&) {
    const auto far = nhwc::from_nchw(addend + TensorOf<float>(Shape{}, 300.f));
    const auto y = nhwc::conv_norm(nhwc::from_nchw(x), w, c.options(false), {.addend = &far});
    const auto exact = [&](const TensorOf<float>& t) {
      std::vector<double> values;
      for (const float v : t.to_host()) values.push_back(static_cast<double>(v));
      return Tensor(t.shape(), values);
    };
    const Tensor expected =
        group_norm(conv2d(exact(x), exact(w), c.conv) + exact(nhwc::to_nchw(far)), c.groups);
    // What remains is the rounding of the sum itself, 300 times 6e-8 of a deviation of about 3.
    check_values(
        nhwc::to_nchw(y), expected.shape(), [&](const Place& p) { return at(expected, p); }, 2e-5);
  });
}

TEST_CASE_TEMPLATE("group_norm and upsample_add on channels-last images", S, float, double) {
  const Shape shape{3, 12, 6, 5};
  const auto x = random_tensor<S>(shape, 1), large_image = random_tensor<S>({3, 12, 18, 15}, 2);
  const auto w = random_tensor<S>({12}, 3), b = random_tensor<S>({12}, 4);
  check_close(nhwc::to_nchw(nhwc::group_norm(nhwc::from_nchw(x), {.groups = 4})), group_norm(x, 4));
  check_close(nhwc::to_nchw(nhwc::group_norm(nhwc::from_nchw(x), {.groups = 4, .eps = 0.1}, w, b)),
              group_norm(x, 4, w, b, S(0.1)));
  check_close(
      nhwc::to_nchw(nhwc::group_norm(nhwc::from_nchw(x), {.groups = 4, .relu = true}, w, b)),
      relu(group_norm(x, 4, w, b)));
  // So many channels that rows of them do not end with a vector before long.
  const auto odd = random_tensor<S>({2, 257, 3, 2}, 5);
  const auto scale = random_tensor<S>({257}, 6), shift = random_tensor<S>({257}, 7);
  check_close(nhwc::to_nchw(nhwc::group_norm(nhwc::from_nchw(odd), {}, scale, shift)),
              group_norm(odd, 1, scale, shift));
  const auto sum = large_image + upsample_nearest(x, 3);
  check_close(
      nhwc::to_nchw(nhwc::upsample_add(nhwc::from_nchw(large_image), nhwc::from_nchw(x), 3)), sum);
  check_close(
      nhwc::to_nchw(nhwc::upsample_add(nhwc::from_nchw(large_image), nhwc::from_nchw(x), 3, true)),
      relu(sum));
  const std::array images{nhwc::from_nchw(large_image), nhwc::from_nchw(x),
                          nhwc::from_nchw(large_image)};
  using Images = std::span<const std::remove_cvref_t<decltype(images[0])>>;
  const std::array<Index, 2> factors{3, 1};
  for (const bool rectified : {false, true}) {
    const auto all = sum + large_image;
    check_close(nhwc::to_nchw(nhwc::upsample_add(Images(images), std::span(factors), rectified)),
                rectified ? relu(all) : all);
  }
}

TEST_CASE("VJPs of group_norm and upsample_add") {
  const Tensor x = random_tensor({2, 3, 2, 6}, 1), big = random_tensor({2, 6, 4, 6}, 2);
  gradient_check(
      "group_norm", [](const auto& v) { return nhwc::group_norm(v, {.groups = 3}); }, x);
  gradient_check(
      "group_norm with weight and bias",
      [](const auto& v, const auto& w, const auto& b) {
        return nhwc::group_norm(v, {.groups = 2}, w, b);
      },
      x, random_tensor({6}, 3), random_tensor({6}, 4));
  gradient_check(
      "rectified group_norm",
      [](const auto& v, const auto& w, const auto& b) {
        return nhwc::group_norm(v, {.groups = 2, .relu = true}, w, b);
      },
      x, random_tensor({6}, 3), random_tensor({6}, 4));
  for (const bool relu : {false, true})
    gradient_check(
        "upsample_add",
        [=](const auto& a, const auto& b) { return nhwc::upsample_add(a, b, 2, relu); }, big, x);
  for (const bool relu : {false, true})
    gradient_check(
        "upsample_add of one size",
        [=](const auto& a, const auto& b) { return nhwc::upsample_add(a, b, 1, relu); }, x,
        random_tensor(x.shape(), 5));
  for (const bool relu : {false, true})
    for (const auto& factors : {std::array<Index, 3>{1, 2, 2}, {2, 1, 2}})
      gradient_check(
          "upsample_add of several",
          [=]<class V>(const V& a, const V& b, const V& c, const V& d) {
            const std::array<V, 4> images{a, b, c, d};
            return nhwc::upsample_add(std::span<const V>(images), std::span(factors), relu);
          },
          big, factors[0] == 1 ? big : x, factors[1] == 1 ? big : x, random_tensor(x.shape(), 6));
  check_threads(
      "group_norm", [](const auto& v) { return nhwc::group_norm(v, {.groups = 4}); },
      random_tensor<float>({3, 30, 30, 8}, 1));
  check_samples(
      "group_norm", [](const auto& v) { return nhwc::group_norm(v, {.groups = 3}); }, x);
}

TEST_CASE("NaN goes through relu in the fused operations") {
  Tensor x = random_tensor({1, 2, 2, 4}, 1);
  x.data()[5] = not_a_number;
  CHECK(std::isnan(nhwc::upsample_add(x, x, 1, true).data()[5]));
  const Tensor w = random_tensor({4, 4, 1, 1}, 2);
  CHECK(std::isnan(nhwc::conv_norm(x, w, {.relu = true}).data()[0]));
}

TEST_CASE("A frozen weight is packed once, and its handle alone remembers") {
  const Tensor w = random_tensor({2, 3}, 1);
  int made = 0;
  const auto twice = [&](const Tensor& t, int key) {
    return t.derive(key, [&] {
      ++made;
      return t.clone();
    });
  };
  twice(w, 0);
  twice(w, 0);
  CHECK(made == 2);
  const Tensor frozen = w.frozen(), copy = frozen;
  CHECK(twice(frozen, 0).data() == twice(copy, 0).data());
  CHECK(made == 3);
  twice(copy, 1);
  CHECK(made == 4);
  for (const Tensor& other : {w, frozen.reshaped({6}), frozen.rows(0, 1), w.frozen()})
    twice(other, 0);
  CHECK(made == 8);

  Tensor alias = frozen.alias();
  CHECK(twice(alias, 0).data() == twice(frozen, 0).data());
  CHECK(made == 8);
  const Tensor derived = twice(alias, 2);
  alias = {};
  CHECK(twice(frozen, 2).data() == derived.data());
  CHECK(made == 9);
}

TEST_CASE("Aliases share what is derived, whoever is first, and outlive the frozen handle") {
  const Threads scope(4);
  for (int round = 0; round < 20; ++round) {
    Tensor frozen = random_tensor({2, 3}, 1).frozen();
    std::vector<Tensor> aliases(8);
    for (Tensor& alias : aliases) alias = frozen.alias();
    const std::vector<double> numbers = frozen.to_host();
    frozen = {};
    std::atomic<int> made = 0;
    deq::parallel_for(8, [&](Index i) {
      Tensor& alias = aliases[static_cast<std::size_t>(i)];
      const Tensor derived = alias.derive(0, [&] {
        ++made;
        return alias.clone();
      });
      const Tensor copy = alias;
      alias = {};
      CHECK(derived.to_host() == numbers);
      CHECK(copy.to_host() == numbers);
    });
    CHECK(made == 1);
  }
}

TEST_CASE("Channels-last operations name what does not fit") {
  const Tensor x({2, 4, 4, 6}, 1), matrix({3, 4}, 1), w({8, 6, 3, 3}, 1), five({5}, 1);
  const auto wrong = [](auto f, std::initializer_list<std::string> parts) {
    check_error<deq::ShapeError>(f, parts);
  };
  wrong([&] { nhwc::from_nchw(matrix); }, {"from_nchw", "(3, 4)"});
  wrong([&] { nhwc::to_nchw(matrix); }, {"to_nchw", "(3, 4)"});
  deq::BatchNormState<deq::Cpu<double>> state(5), eight(8);
  const Tensor one({1, 1, 1, 6}, 1), pointwise({8, 6, 1, 1}, 1);
  const auto train = BatchNormMode::train;
  wrong([&] { nhwc::conv_batch_norm(x, w, state, train, {}); },
        {"conv_batch_norm", "running mean", "8 channels", "(5)"});
  wrong([&] { nhwc::conv_batch_norm(x, w, eight, train, {}, {.bias = &five}); },
        {"conv_batch_norm", "bias", "8 channels", "(5)"});
  wrong([&] { nhwc::conv_batch_norm(one, pointwise, eight, train, {}); },
        {"conv_batch_norm", "more than one value", "(1, 1, 1, 8)"});
  CHECK(eight.batches == 0);
  wrong([&] { nhwc::group_norm(x, {.groups = 4}); }, {"group_norm", "6 channels", "4 groups"});
  wrong([&] { nhwc::group_norm(x, {.groups = 2}, five, five); }, {"group_norm", "weight", "(5)"});
  wrong([&] { nhwc::upsample_add(x, x, 2); }, {"upsample_add", "(2, 4, 4, 6)", "2 times"});
  const std::array<Index, 2> factors{1, 1};
  wrong([&] { nhwc::upsample_add(std::span<const Tensor>(&x, 1), std::span(factors)); },
        {"upsample_add", "1 images", "2 factors"});
  wrong([&] { nhwc::conv_norm(matrix, w, {}); }, {"conv_norm", "(3, 4)"});
  wrong([&] { nhwc::conv_norm(x, w, {.groups = 3, .conv = {.padding = 1}}); },
        {"conv_norm", "8 channels", "3 groups"});
  wrong([&] { nhwc::conv_norm(x, w, {.groups = 2}, {.scale = &five}); }, {"conv_norm", "(5)"});
  wrong([&] { nhwc::conv_norm(x, w, {.groups = 2}, {.residual = &x}); },
        {"conv_norm", "(2, 4, 4, 6)", "(2, 2, 2, 8)"});
  wrong([&] { nhwc::conv_norm(x, w, {.groups = 2}, {.mask = &five}); }, {"conv_norm", "mask"});
  const Tensor out({2, 2, 2, 8}, 1);
  check_error<deq::InvalidArgument>(
      [&] { nhwc::conv_norm(x, w, {.groups = 2, .average = true}, {.residual = &out}); },
      {"conv_norm", "average", "residual"});
}
