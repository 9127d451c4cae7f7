// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/cpu/kernels.hpp>
#include <deq/core/host_pool.hpp>
#include <deq/nn/adam.hpp>
#include <deq/nn/augment.hpp>
#include <deq/nn/schedule.hpp>

using deq::Index;

namespace {

template <class S>
using Cpu = deq::Cpu<S>;

template <class S>
deq::Parameters<Cpu<S>> two_values() {
  deq::Parameters<Cpu<S>> parameters;
  parameters.emplace_back("weight", deq::Shape{2});
  parameters[0].value.data()[0] = 1;
  parameters[0].value.data()[1] = -2;
  return parameters;
}

template <class S>
void set_grad(deq::Parameters<Cpu<S>>& parameters, int step) {
  static constexpr double grads[3][2] = {{0.5, -0.25}, {-1.5, 0.125}, {0.75, 2.0}};
  for (int i = 0; i < 2; ++i) parameters[0].grad.data()[i] = static_cast<S>(grads[step][i]);
}

/// Images whose every byte is known: pixel (y, x) of channel c of image i.
std::uint8_t pixel(Index image, Index c, Index y, Index x) {
  return static_cast<std::uint8_t>((image * 101 + c * 61 + y * 7 + x * 3 + 1) % 256);
}
std::vector<std::uint8_t> images(Index count, Index height, Index width) {
  std::vector<std::uint8_t> bytes;
  for (Index i = 0; i < count; ++i)
    for (Index c = 0; c < 3; ++c)
      for (Index y = 0; y < height; ++y)
        for (Index x = 0; x < width; ++x) bytes.push_back(pixel(i, c, y, x));
  return bytes;
}

struct ThreadCount {
  explicit ThreadCount(int threads) : before(deq::num_threads()) { deq::set_num_threads(threads); }
  ~ThreadCount() { deq::set_num_threads(before); }
  int before;
};

}  // namespace

// The numbers follow from the formulas of torch.optim.Adam's documentation, evaluated step by step
// in Python: theta (1, -2), weight decay 0.1, learning rate 0.01.
TEST_CASE_TEMPLATE("Adam makes PyTorch's steps", S, float, double) {
  const double expected[3][2] = {{0.99000000016666667, -1.9900000002222222},
                                 {0.99420420240017138, -1.9821802439292606},
                                 {0.99393124429483337, -1.9868916516495887}};
  auto parameters = two_values<S>();
  deq::Adam<Cpu<S>> adam(parameters, {.weight_decay = 0.1});
  const double tolerance = 8 * std::numeric_limits<S>::epsilon();
  for (int step = 0; step < 3; ++step) {
    set_grad(parameters, step);
    adam.step(parameters, 0.01);
    for (int i = 0; i < 2; ++i)
      CHECK(std::abs(double{parameters[0].value.data()[i]} - expected[step][i]) < tolerance);
  }
  CHECK(adam.steps() == 3);
  const double first[2] = {0.0074520420255017178, 0.13706819755870736};
  const double second[2] = {0.0030416336092740767, 0.0034539840141258188};
  for (int i = 0; i < 2; ++i) {
    CHECK(std::abs(double{adam.first_moment(0).data()[i]} - first[i]) < tolerance);
    CHECK(std::abs(double{adam.second_moment(0).data()[i]} - second[i]) < tolerance);
  }
}

TEST_CASE("Adam goes on from a checkpoint with the same bits") {
  using B = Cpu<float>;
  auto straight = two_values<float>(), resumed = two_values<float>();
  deq::Adam<B> adam(straight, {.weight_decay = 0.1});
  set_grad(straight, 0);
  adam.step(straight, 0.01);
  adam.step(straight, 0.01);

  const std::vector<deq::Tensor<B>> first = {adam.first_moment(0).clone()};
  const std::vector<deq::Tensor<B>> second = {adam.second_moment(0).clone()};
  resumed[0].value = straight[0].value.clone();
  deq::Adam<B> again(resumed, {.weight_decay = 0.1});
  again.restore(adam.steps(), first, second);

  set_grad(straight, 1);
  set_grad(resumed, 1);
  adam.step(straight, 0.005);
  again.step(resumed, 0.005);
  CHECK(straight[0].value.to_host() == resumed[0].value.to_host());
  CHECK(adam.second_moment(0).to_host() == again.second_moment(0).to_host());
  CHECK(again.steps() == 3);
  CHECK(first[0].to_host() != again.first_moment(0).to_host());  // copied, not shared
}

TEST_CASE("Adam allocates nothing after its construction, and no thread number changes a bit") {
  const auto train = [](int threads) {
    const ThreadCount guard(threads);
    deq::Parameters<Cpu<float>> parameters;
    parameters.emplace_back("large", deq::Shape{300, 301});
    for (Index i = 0; i < parameters[0].grad.size(); ++i)
      parameters[0].grad.data()[i] = std::sin(static_cast<float>(i));
    deq::Adam<Cpu<float>> adam(parameters);
    const auto requests = deq::HostPool::instance().system_requests();
    for (int step = 0; step < 3; ++step) adam.step(parameters, 0.01);
    CHECK(deq::HostPool::instance().system_requests() == requests);
    return parameters[0].value.to_host();
  };
  CHECK(train(1) == train(3));
}

TEST_CASE("Adam refuses what does not fit") {
  using B = Cpu<double>;
  auto parameters = two_values<double>();
  CHECK_THROWS_AS(deq::Adam<B>(parameters, {.beta1 = 1}), deq::InvalidArgument);
  CHECK_THROWS_AS(deq::Adam<B>(parameters, {.beta2 = -0.1}), deq::InvalidArgument);
  CHECK_THROWS_AS(deq::Adam<B>(parameters, {.epsilon = 0}), deq::InvalidArgument);
  CHECK_THROWS_AS(deq::Adam<B>(parameters, {.weight_decay = -1}), deq::InvalidArgument);

  deq::Adam<B> adam(parameters);
  CHECK_THROWS_AS(adam.step(parameters, -1), deq::InvalidArgument);
  const std::vector<deq::Tensor<B>> good = {deq::Tensor<B>(deq::Shape{2}, 1.0)};
  const std::vector<deq::Tensor<B>> bad = {deq::Tensor<B>(deq::Shape{3}, 1.0)};
  CHECK_THROWS_AS(adam.restore(1, good, bad), deq::ShapeError);
  CHECK_THROWS_AS(adam.restore(-1, good, good), deq::InvalidArgument);
  CHECK(adam.first_moment(0).data()[0] == 0);  // a refused checkpoint leaves no trace
  for (const auto& gradient : {deq::Tensor<B>(deq::Shape{1}, 1.0), deq::Tensor<B>()}) {
    auto with_it = parameters;
    with_it[0].grad = gradient;
    CHECK_THROWS_AS(adam.step(with_it, 0.1), deq::ShapeError);
    CHECK_THROWS_AS(adam.apply(with_it), deq::ShapeError);
  }
  parameters.emplace_back("one too many", deq::Shape{1});
  CHECK_THROWS_AS(adam.step(parameters, 0.1), deq::ShapeError);
  CHECK(adam.steps() == 0);
}

TEST_CASE("CosineSchedule is CosineAnnealingLR's closed form") {
  const deq::CosineSchedule schedule(1e-3, 1000, 1e-6);
  CHECK(schedule(0) == 1e-3);
  CHECK(schedule(1) == doctest::Approx(0.00099999753506832827).epsilon(1e-14));
  CHECK(schedule(250) == doctest::Approx(0.00085369983720268053).epsilon(1e-14));
  CHECK(schedule(500) == doctest::Approx(0.0005005).epsilon(1e-14));
  CHECK(schedule(999) == doctest::Approx(1.0024649316718226e-06).epsilon(1e-12));
  CHECK(schedule(1000) == 1e-6);
  CHECK(schedule(1500) == doctest::Approx(schedule(500)).epsilon(1e-14));
  CHECK_THROWS_AS(deq::CosineSchedule(1e-3, 0), deq::InvalidArgument);
  CHECK_THROWS_AS(deq::CosineSchedule(-1, 10), deq::InvalidArgument);
}

TEST_CASE_TEMPLATE("ImageTransform normalises", S, float, double) {
  const deq::ImageTransform<deq::Cpu<S>> transform;
  const auto data = images(3, 32, 32);
  const std::vector<std::uint32_t> samples = {2, 0};
  std::vector<S> out(2 * 3072);
  transform.plain(data, samples, out);
  const double mean[3] = {0.4914, 0.4822, 0.4465}, stddev[3] = {0.2023, 0.1994, 0.2010};
  for (Index j = 0; j < 2; ++j)
    for (Index c = 0; c < 3; ++c)
      for (Index y = 0; y < 32; y += 5)
        for (Index x = 0; x < 32; x += 3) {
          const double byte = pixel(samples[static_cast<std::size_t>(j)], c, y, x);
          const double expected = (byte / 255 - mean[c]) / stddev[c];
          const S got = out[static_cast<std::size_t>(((j * 3 + c) * 32 + y) * 32 + x)];
          CHECK(std::abs(double{got} - expected) < 4 * std::numeric_limits<S>::epsilon());
        }
}

TEST_CASE("an augmented image is the crop of the padded one that was drawn") {
  // With these values normalising does nothing but keep the bytes, so that a pixel names its
  // origin.
  const deq::ImageOptions options{.height = 6,
                                  .width = 5,
                                  .mean = {0, 0, 0},
                                  .stddev = {1 / 255.0, 1 / 255.0, 1 / 255.0},
                                  .padding = 2};
  const deq::ImageTransform<deq::Cpu<double>> transform(options);
  const auto data = images(40, 6, 5);
  std::vector<std::uint32_t> samples(40);
  std::iota(samples.begin(), samples.end(), 0U);
  std::vector<double> out(40 * 90);
  transform.augmented(data, samples, 7, 3, out);

  std::set<Index> tops, lefts;
  int flips = 0;
  for (Index i = 0; i < 40; ++i) {
    const deq::ImageCut crop = transform.draw(7, 3, static_cast<std::uint32_t>(i));
    tops.insert(crop.top);
    lefts.insert(crop.left);
    flips += crop.flip;
    for (Index c = 0; c < 3; ++c)
      for (Index y = 0; y < 6; ++y)
        for (Index x = 0; x < 5; ++x) {
          const Index row = y + crop.top - 2;
          const Index column = (crop.flip ? 4 - x : x) + crop.left - 2;
          const bool inside = row >= 0 && row < 6 && column >= 0 && column < 5;
          const double expected = inside ? pixel(i, c, row, column) : 0;
          const auto at = static_cast<std::size_t>(((i * 3 + c) * 6 + y) * 5 + x);
          CHECK(std::abs(out[at] - expected) < 1e-9);
        }
  }
  CHECK(tops == std::set<Index>{0, 1, 2, 3, 4});
  CHECK(lefts == std::set<Index>{0, 1, 2, 3, 4});
  CHECK(flips > 8);
  CHECK(flips < 32);
}

TEST_CASE("padding is a black pixel, normalised, not a zero") {
  const deq::ImageTransform<deq::Cpu<double>> transform(deq::ImageOptions{.height = 1, .width = 1});
  const std::vector<std::uint8_t> white(3, 255);
  const std::vector<std::uint32_t> samples = {0};
  std::vector<double> out(3);
  std::uint32_t epoch = 0;
  while (transform.draw(1, epoch, 0).top == 4) ++epoch;
  transform.augmented(white, samples, 1, epoch, out);
  CHECK(out[0] == doctest::Approx(-0.4914 / 0.2023));
  CHECK(out[2] == doctest::Approx(-0.4465 / 0.2010));
}

TEST_CASE("augmentation depends on seed, epoch and sample alone") {
  const deq::ImageTransform<deq::Cpu<float>> transform;
  const auto data = images(64, 32, 32);
  std::vector<std::uint32_t> samples(64), reversed(64);
  std::iota(samples.begin(), samples.end(), 0U);
  std::reverse_copy(samples.begin(), samples.end(), reversed.begin());
  const auto run = [&](const std::vector<std::uint32_t>& which, int threads, std::uint64_t seed,
                       std::uint32_t epoch) {
    const ThreadCount guard(threads);
    std::vector<float> out(which.size() * 3072);
    transform.augmented(data, which, seed, epoch, out);
    return out;
  };
  const auto one = run(samples, 1, 5, 0);
  CHECK(one == run(samples, 4, 5, 0));
  CHECK(one != run(samples, 1, 6, 0));
  CHECK(one != run(samples, 1, 5, 1));
  const auto backwards = run(reversed, 2, 5, 0);
  CHECK(std::equal(one.begin(), one.begin() + 3072, backwards.end() - 3072));
}

TEST_CASE("without a flip and a crop, augmented is plain") {
  const deq::ImageTransform<deq::Cpu<float>> transform(
      deq::ImageOptions{.padding = 0, .flip = false});
  const auto data = images(4, 32, 32);
  const std::vector<std::uint32_t> samples = {0, 1, 2, 3};
  std::vector<float> plain(4 * 3072), augmented(4 * 3072);
  transform.plain(data, samples, plain);
  transform.augmented(data, samples, 1, 1, augmented);
  CHECK(plain == augmented);
}

TEST_CASE("ImageTransform refuses what does not fit") {
  const deq::ImageTransform<deq::Cpu<float>> transform;
  CHECK(transform.image_size() == 3072);
  const std::vector<std::uint32_t> samples = {0}, beyond = {1};
  const std::vector<std::uint8_t> one(3072), torn(3071);
  std::vector<float> out(3072), small(3071);
  CHECK_THROWS_AS(transform.plain(torn, samples, out), deq::ShapeError);
  CHECK_THROWS_AS(transform.plain(one, samples, small), deq::ShapeError);
  CHECK_THROWS_WITH_AS(transform.plain(one, beyond, out),
                       "ImageTransform: there is no image 1, the data set has 1",
                       deq::InvalidArgument);
  using Transform = deq::ImageTransform<deq::Cpu<float>>;
  CHECK_THROWS_AS(Transform(deq::ImageOptions{.padding = -1}), deq::InvalidArgument);
  CHECK_THROWS_AS(Transform(deq::ImageOptions{.height = 0}), deq::InvalidArgument);
  CHECK_THROWS_AS(Transform(deq::ImageOptions{.stddev = {1, 0, 1}}), deq::InvalidArgument);
}

TEST_CASE("shuffled_indices is a permutation, its own in each epoch") {
  const auto order = deq::shuffled_indices(1000, 1, 0);
  auto sorted = order;
  std::sort(sorted.begin(), sorted.end());
  for (std::uint32_t i = 0; i < 1000; ++i) CHECK(sorted[i] == i);
  CHECK(order != sorted);
  CHECK(order == deq::shuffled_indices(1000, 1, 0));
  CHECK(order != deq::shuffled_indices(1000, 1, 1));
  CHECK(order != deq::shuffled_indices(1000, 2, 0));
  CHECK(deq::shuffled_indices(0, 1, 0).empty());
  CHECK(deq::shuffled_indices(1, 1, 0) == std::vector<std::uint32_t>{0});
}

TEST_CASE("shuffled_indices makes every permutation equally likely") {
  std::vector<int> seen(24, 0);
  for (std::uint32_t epoch = 0; epoch < 24000; ++epoch) {
    const auto order = deq::shuffled_indices(4, 9, epoch);
    std::size_t rank = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      std::size_t smaller = 0;
      for (std::size_t j = i + 1; j < 4; ++j) smaller += order[j] < order[i];
      rank = rank * (4 - i) + smaller;
    }
    ++seen[rank];
  }
  // 1000 expected, standard deviation 31: five of them.
  for (const int count : seen) CHECK(std::abs(count - 1000) < 155);
}
