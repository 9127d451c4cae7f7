// SPDX-License-Identifier: MIT
// deq/backend/cpu/conv: the algorithms against each other, and how well they round
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/cpu/conv/schedule.hpp>

#include "support/tensors.hpp"

using namespace deq_test;
using deq::Conv2dGeometry;
namespace engine = deq::detail;

namespace {

template <class S>
std::vector<S> random_values(Index n, std::uint64_t seed) {
  deq::Random random(seed, deq::Purpose::user);
  std::vector<S> x(static_cast<std::size_t>(n));
  for (S& xi : x) xi = static_cast<S>(random.normal());
  return x;
}

/// y = x * w of channels-last images by one algorithm.
template <class S>
std::vector<double> convolve(const Conv2dGeometry& g, bool transposed,
                             engine::ConvAlgorithm algorithm, const std::vector<float>& image,
                             const std::vector<float>& weight) {
  const std::vector<S> x(image.begin(), image.end()), w(weight.begin(), weight.end());
  const engine::ConvPlan<S> plan(g, transposed, algorithm);
  deq::Array<deq::Cpu<S>> packed(plan.packed_size());
  plan.pack(w.data(), packed.data());
  const Index size =
      g.samples * (transposed ? g.in_pixels() * g.in_channels : g.out_pixels() * g.out_channels);
  std::vector<S> y(static_cast<std::size_t>(size));
  plan.run(x.data(), packed.data(), {}, y.data());
  return {y.begin(), y.end()};
}

/// dl/dw by one algorithm.
template <class S>
std::vector<double> weight_gradient(const Conv2dGeometry& g, engine::ConvAlgorithm algorithm,
                                    const std::vector<float>& image,
                                    const std::vector<float>& cotangent) {
  const std::vector<S> x(image.begin(), image.end()), dy(cotangent.begin(), cotangent.end());
  std::vector<S> dw(static_cast<std::size_t>(g.out_channels * g.patch()), S(0.5));
  using engine::ConvAlgorithm;
  const auto compute = [&](bool accumulate) {
    switch (algorithm) {
      case ConvAlgorithm::direct:
        return engine::weight_gradient_direct(g, x.data(), dy.data(), dw.data(), accumulate);
      case ConvAlgorithm::winograd2:
        return engine::weight_gradient_winograd<2>(g, x.data(), dy.data(), dw.data(), accumulate);
      case ConvAlgorithm::winograd4:
        return engine::weight_gradient_winograd<4>(g, x.data(), dy.data(), dw.data(), accumulate);
      case ConvAlgorithm::onednn:
        return engine::weight_gradient(g, x.data(), dy.data(), dw.data(), accumulate, algorithm);
    }
  };
  compute(false);
  compute(true);  // so what is compared is twice the gradient
  return {dw.begin(), dw.end()};
}

/// All that this program has for a type of numbers.
template <class S>
std::vector<engine::ConvAlgorithm> algorithms() {
  using engine::ConvAlgorithm;
  std::vector all{ConvAlgorithm::direct, ConvAlgorithm::winograd2, ConvAlgorithm::winograd4};
  if (engine::has_onednn<S>) all.push_back(ConvAlgorithm::onednn);
  return all;
}

double relative_error(const std::vector<double>& y, const std::vector<double>& exact) {
  double error = 0, scale = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    error += (y[i] - exact[i]) * (y[i] - exact[i]);
    scale += exact[i] * exact[i];
  }
  return std::sqrt(error / scale);
}

/// Mean and standard deviation of every channel of every sample, by parts put together.
std::vector<double> moments_of(const engine::MomentParts<float>& moments, Index samples) {
  std::vector<double> list;
  for (Index sample = 0; sample < samples; ++sample)
    for (Index c = 0; c < moments.channels; ++c) {
      double count = 0, mean = 0, squares = 0;
      for (Index p = 0; p < moments.parts; ++p) {
        const float* const part = moments.part(sample, p);
        const double n = part[0], distance = part[1 + c] - mean;
        squares += part[1 + moments.channels + c] + distance * distance * count * n / (count + n);
        count += n;
        mean += distance * n / count;
      }
      list.insert(list.end(), {mean, std::sqrt(squares / count)});
    }
  return list;
}
/// The same of channels-last images.
std::vector<double> moments_of(const std::vector<double>& y, Index samples, Index channels) {
  const Index pixels = static_cast<Index>(y.size()) / (samples * channels);
  std::vector<double> list;
  for (Index sample = 0; sample < samples; ++sample)
    for (Index c = 0; c < channels; ++c) {
      const auto sum = [&](auto term) {
        double total = 0;
        for (Index i = 0; i < pixels; ++i)
          total += term(y[static_cast<std::size_t>((sample * pixels + i) * channels + c)]);
        return total;
      };
      const double n = static_cast<double>(pixels), mean = sum([](double v) { return v; }) / n;
      const double squares = sum([&](double v) { return (v - mean) * (v - mean); });
      list.insert(list.end(), {mean, std::sqrt(squares / n)});
    }
  return list;
}

}  // namespace

TEST_CASE("How well a 3x3 convolution rounds, by algorithm") {
  using engine::ConvAlgorithm;
  // Root mean square error over root mean square output, in single precision, for sums over n
  // channels. The bounds are about a quarter above what was measured: at 24 channels 1.0e-7, 1.6e-7
  // and 5.1e-7, at 640 channels 3.5e-7, 2.9e-7 and 9.4e-7; the third without fused multiply-adds
  // 6.3e-7 at 24 channels. oneDNN adds up one long chain of products: 1.5e-7 at 8 channels, 2.6e-7
  // at 24, 5.9e-7 at 120, 9.1e-7 at 320 and 1.16e-6 at 640, the largest that it was told to use of
  // AVX-512, AVX2, AVX and SSE4.1.
  struct Bound {
    ConvAlgorithm algorithm;
    double constant, growth;
    double of(Index n) const { return constant + growth * std::sqrt(static_cast<double>(n)); }
  };
  std::vector<Bound> bounds{{ConvAlgorithm::direct, 6e-8, 1.5e-8},
                            {ConvAlgorithm::winograd2, 1.6e-7, 8e-9},
                            {ConvAlgorithm::winograd4, 6.6e-7, 2.5e-8}};
  if (engine::has_onednn<float>) bounds.push_back({ConvAlgorithm::onednn, 4e-8, 6e-8});
  for (const auto& extents : {std::array<Index, 3>{24, 120, 16},
                              {120, 24, 16},
                              {320, 64, 8},
                              {640, 128, 4},
                              {30, 28, 9},  // a vector and a half, as 24, of other machines
                              {8, 14, 5},
                              {9, 11, 7}}) {
    const Index in = extents[0], out = extents[1], side = extents[2];
    const Conv2dGeometry g{2, in, side, side, out, 3, 3, 1, 1};
    const auto w = random_values<float>(9 * in * out, 2);
    for (const bool transposed : {false, true}) {
      CAPTURE(in);
      CAPTURE(transposed);
      const auto x = random_values<float>(g.samples * g.in_pixels() * (transposed ? out : in), 1);
      const auto exact = convolve<double>(g, transposed, ConvAlgorithm::direct, x, w);
      for (const Bound& bound : bounds) {
        CAPTURE(static_cast<int>(bound.algorithm));
        const double single = bound.of(transposed ? out : in);
        CHECK(relative_error(convolve<float>(g, transposed, bound.algorithm, x, w), exact) <
              single);
        if (bound.algorithm == ConvAlgorithm::onednn) continue;  // has no double
        // 2^-29 of it, twice because the reference rounds as well.
        CHECK(relative_error(convolve<double>(g, transposed, bound.algorithm, x, w), exact) <
              single * std::ldexp(1, -28));
      }
    }
  }
}

TEST_CASE("Every algorithm adds, masks and takes moments alike") {
  // Whole vectors, one and a half, and one that ends elsewhere; some cut a sample in two parts.
  // Rounding alone made at most 6.7e-7.
  for (const Index channels : {32, 24, 21}) {
    const Conv2dGeometry g{3, channels, 13, 11, channels, 3, 3, 1, 1};
    const Index size = g.samples * g.in_pixels() * channels;
    const auto x = random_values<float>(size, 1),
               w = random_values<float>(9 * channels * channels, 2),
               addend = random_values<float>(size, 3), bias = random_values<float>(channels, 4),
               mask = random_values<float>(g.samples * channels, 5);
    for (const bool transposed : {false, true}) {
      const auto plain = convolve<double>(g, transposed, engine::ConvAlgorithm::direct, x, w);
      for (const auto algorithm : algorithms<float>()) {
        const engine::ConvPlan<float> plan(g, transposed, algorithm);
        deq::Array<deq::Cpu<float>> packed(plan.packed_size());
        plan.pack(w.data(), packed.data());
        const auto check = [&](bool add_bias, bool masked, bool add, bool in_place, bool measured) {
          std::vector<float> y = addend;
          engine::Epilogue<float> epilogue;
          if (add_bias) epilogue.bias = bias.data();
          if (masked) epilogue.mask = mask.data();
          if (add) epilogue.addend = in_place ? y.data() : addend.data();
          engine::MomentParts<float> moments{nullptr, channels, plan.pieces.parts()};
          std::vector<float> parts(
              static_cast<std::size_t>(g.samples * moments.parts * moments.part_size()));
          moments.data = parts.data();
          if (measured) epilogue.moments = moments;
          plan.run(x.data(), packed.data(), epilogue, y.data());

          auto expected = plain;
          for (std::size_t i = 0; i < expected.size(); ++i) {
            const std::size_t sample = i / static_cast<std::size_t>(g.in_pixels() * channels),
                              channel = i % static_cast<std::size_t>(channels);
            if (add_bias) expected[i] += bias[channel];
            if (masked) expected[i] *= mask[sample * static_cast<std::size_t>(channels) + channel];
            if (add) expected[i] += addend[i];
          }
          CHECK(relative_error({y.begin(), y.end()}, expected) < 1e-6);
          if (measured)
            CHECK(relative_error(moments_of(moments, g.samples),
                                 moments_of(expected, g.samples, channels)) < 1e-6);
        };
        // What there is, as bits.
        for (unsigned what = 0; what < 32; ++what) {
          CAPTURE(channels);
          CAPTURE(transposed);
          CAPTURE(static_cast<int>(algorithm));
          CAPTURE(what);
          check(what & 1, what & 2, what & 4, what & 8, what & 16);
        }
      }
    }
  }
}

TEST_CASE("Threads share the panels of a single piece, and no bit depends on how many") {
  // One piece by large tiles, one by small ones, one without tiles; moments as well.
  for (const Conv2dGeometry& g : {Conv2dGeometry{1, 320, 8, 8, 100, 3, 3, 1, 1},
                                  {1, 16, 4, 4, 200, 3, 3, 1, 1},
                                  {2, 9, 5, 6, 150, 3, 3, 2, 1}}) {
    CAPTURE(g.in_channels);
    const auto x = random_values<float>(g.samples * g.in_pixels() * g.in_channels, 1),
               w = random_values<float>(g.out_channels * g.patch(), 2);
    const auto run = [&](int threads) {
      const Threads scope(threads);
      const engine::ConvPlan<float> plan(g, false);
      CHECK(plan.pieces.count() < 3);
      deq::Array<deq::Cpu<float>> packed(plan.packed_size());
      plan.pack(w.data(), packed.data());
      engine::MomentParts<float> moments{nullptr, g.out_channels, plan.pieces.parts()};
      std::vector<float> y(static_cast<std::size_t>(g.samples * g.out_pixels() * g.out_channels)),
          parts(static_cast<std::size_t>(g.samples * moments.parts * moments.part_size()));
      moments.data = parts.data();
      plan.run(x.data(), packed.data(), {{}, moments}, y.data());
      return std::pair(y, parts);
    };
    const auto one = run(1);
    for (const int threads : {2, 3, 8}) CHECK(run(threads) == one);
  }
}

TEST_CASE("How well the gradient of a 3x3 weight rounds, by algorithm") {
  using engine::ConvAlgorithm;
  // As above; the bounds are about a quarter above what was measured. A direct sum is one chain for
  // the pixels of a strip, of one sample or several; oneDNN's chains are as long as the pixels of a
  // part of the samples: 5.7e-7 (AVX2; 1.8e-7 with AVX-512), 3.0e-7, 1.6e-7, 2.7e-7 and 1.6e-7.
  struct Case {
    Conv2dGeometry geometry;
    double direct, winograd2, winograd4, onednn;
  };
  const Case cases[]{{{1, 24, 32, 32, 40, 3, 3, 1, 1}, 3.1e-7, 3.4e-7, 1.05e-6, 7.1e-7},
                     {{20, 9, 7, 10, 11, 3, 3, 1, 2}, 2.2e-7, 3.2e-7, 9.2e-7, 3.8e-7},
                     {{3, 8, 9, 6, 13, 3, 3, 1, 0}, 2.0e-7, 2.1e-7, 4.4e-7, 2.0e-7},
                     // Several samples a strip, in parts of the samples and in blocks of channels.
                     {{40, 9, 4, 4, 11, 3, 3, 1, 1}, 2.7e-7, 3.6e-7, 1.0e-6, 3.4e-7},
                     {{7, 64, 4, 4, 120, 3, 3, 1, 1}, 2.0e-7, 2.5e-7, 6.1e-7, 2.0e-7}};
  for (const Case& c : cases) {
    const Conv2dGeometry& g = c.geometry;
    CAPTURE(g.in_channels);
    const auto x = random_values<float>(g.samples * g.in_pixels() * g.in_channels, 1);
    const auto dy = random_values<float>(g.samples * g.out_pixels() * g.out_channels, 2);
    const auto exact = weight_gradient<double>(g, ConvAlgorithm::direct, x, dy);
    const auto check = [&](ConvAlgorithm algorithm, double bound) {
      CAPTURE(static_cast<int>(algorithm));
      CHECK(relative_error(weight_gradient<float>(g, algorithm, x, dy), exact) < bound);
      if (algorithm == ConvAlgorithm::onednn) return;  // has no double
      CHECK(relative_error(weight_gradient<double>(g, algorithm, x, dy), exact) <
            bound * std::ldexp(1, -28));
    };
    check(ConvAlgorithm::direct, c.direct);
    check(ConvAlgorithm::winograd2, c.winograd2);
    check(ConvAlgorithm::winograd4, c.winograd4);
    if (engine::has_onednn<float>) check(ConvAlgorithm::onednn, c.onednn);
  }
}

TEST_CASE("Pieces cover every unit once, and cut a sample the same way in any batch") {
  for (const Index units : {1, 3, 16, 63, 64, 65, 256})
    for (const Index samples : {0, 1, 2, 7}) {
      const engine::Pieces pieces(samples, units, 32), alone(1, units, 32);
      CHECK(pieces.parts() == alone.parts());
      std::vector<int> seen(static_cast<std::size_t>(samples * units), 0);
      for (Index i = 0; i < pieces.count(); ++i) {
        const auto piece = pieces[i];
        CHECK(piece.part < pieces.parts());
        if (pieces.parts() > 1) CHECK(piece.first == alone[piece.part].first);
        for (Index n = piece.first_sample; n < piece.last_sample; ++n)
          for (Index u = piece.first; u < piece.last; ++u)
            ++seen[static_cast<std::size_t>(n * units + u)];
      }
      for (const int times : seen) CHECK(times == 1);
    }
}

TEST_CASE("Moments put together from parts are those of the whole") {
  constexpr Index width = engine::simd_width<double>;
  const auto y = random_values<double>(100 * width, 3);
  for (const double mean : {0.0, 1e6}) {
    engine::Moments<double> moments;
    engine::for_each_run<double>(0, 100, [&](Index first, Index last) {
      engine::MomentRun<double> run;
      for (Index i = first; i < last; ++i)
        run.add(engine::load(y.data() + i * width) + engine::broadcast(mean));
      moments.add(run);
    });
    std::vector<double> part(1 + 2 * width);
    moments.store_to({part.data(), width, 1}, 0, 0, 0);
    CHECK(part[0] == 100);
    for (Index c = 0; c < width; ++c) {
      double m = 0, squares = 0;
      for (Index i = 0; i < 100; ++i) m += y[static_cast<std::size_t>(i * width + c)] / 100;
      for (Index i = 0; i < 100; ++i)
        squares += std::pow(y[static_cast<std::size_t>(i * width + c)] - m, 2);
      CHECK(part[static_cast<std::size_t>(1 + c)] == doctest::Approx(mean + m).epsilon(1e-14));
      CHECK(part[static_cast<std::size_t>(1 + width + c)] ==
            doctest::Approx(squares).epsilon(1e-8));
    }
  }
}

TEST_CASE("No bit of a weight gradient depends on the number of threads") {
  using engine::ConvAlgorithm;
  // Parts of the samples and of the tiles, where sums are little or blocks are few; blocks and
  // points.
  for (const Conv2dGeometry& g : {Conv2dGeometry{13, 9, 17, 14, 12, 3, 3, 1, 1},
                                  {90, 5, 4, 4, 7, 3, 3, 1, 1},
                                  {9, 72, 10, 6, 120, 3, 3, 1, 1},
                                  {5, 12, 9, 9, 48, 11, 11, 1, 5},
                                  {6, 20, 9, 7, 33, 3, 3, 2, 1},
                                  {3, 50, 6, 6, 70, 1, 1, 1, 0}}) {
    CAPTURE(g.in_channels);
    const auto x = random_values<float>(g.samples * g.in_pixels() * g.in_channels, 1);
    const auto dy = random_values<float>(g.samples * g.out_pixels() * g.out_channels, 2);
    for (const auto algorithm : {ConvAlgorithm::direct, ConvAlgorithm::winograd4}) {
      if (algorithm == ConvAlgorithm::winograd4 && (g.kernel_height != 3 || g.stride != 1))
        continue;
      const auto run = [&](int threads) {
        const Threads scope(threads);
        return weight_gradient<float>(g, algorithm, x, dy);
      };
      const auto one = run(1);
      for (const int threads : {2, 3, 8}) CHECK(run(threads) == one);
    }
  }
}

TEST_CASE("The weight gradient of no samples is zero, or adds nothing") {
  const Conv2dGeometry g{0, 9, 6, 6, 12, 3, 3, 1, 1};
  for (const auto algorithm : algorithms<float>()) {
    CAPTURE(static_cast<int>(algorithm));
    // Computed once over 0.5 and once more added to that.
    for (const double dw : weight_gradient<float>(g, algorithm, {}, {})) CHECK(dw == 0);
  }
  // Of no channels there is none.
  for (const Conv2dGeometry& none : {Conv2dGeometry{2, 0, 6, 6, 12, 3, 3, 1, 1},
                                     {2, 9, 6, 6, 0, 3, 3, 1, 1},
                                     {2, 0, 6, 6, 12, 1, 1, 1, 0}}) {
    const auto x = random_values<float>(none.samples * none.in_pixels() * none.in_channels, 1);
    const auto dy = random_values<float>(none.samples * none.out_pixels() * none.out_channels, 2);
    for (const auto algorithm : {engine::ConvAlgorithm::direct, engine::ConvAlgorithm::winograd4})
      CHECK(weight_gradient<float>(none, algorithm, x, dy).empty());
  }
}

TEST_CASE_TEMPLATE("A dot product has the same bits whoever is computed beside it", S, float,
                   double) {
  for (const Index n : {1, 7, 16, 40, 95, 512}) {
    CAPTURE(n);
    const auto h = random_values<S>(4 * n, 1), x = random_values<S>(n, 2);
    std::array<S, 4> one{}, two{}, three{}, four{};
    for (std::size_t v = 0; v < 4; ++v)
      engine::add_dots<1>(h.data() + static_cast<Index>(v) * n, n, x.data(), n, &one[v]);
    engine::add_dots<2>(h.data(), n, x.data(), n, two.data());
    engine::add_dots<3>(h.data(), n, x.data(), n, three.data());
    engine::add_dots<4>(h.data(), n, x.data(), n, four.data());
    for (std::size_t v = 0; v < 4; ++v) {
      if (v < 2) CHECK(two[v] == one[v]);
      if (v < 3) CHECK(three[v] == one[v]);
      CHECK(four[v] == one[v]);
      double exact = 0, size = 0;
      for (Index i = 0; i < n; ++i) {
        const double term =
            static_cast<double>(h[v * static_cast<std::size_t>(n) + static_cast<std::size_t>(i)]) *
            static_cast<double>(x[static_cast<std::size_t>(i)]);
        exact += term;
        size += std::abs(term);
      }
      CHECK(std::abs(static_cast<double>(one[v]) - exact) <=
            16 * static_cast<double>(std::numeric_limits<S>::epsilon()) * size);
    }
  }
}
