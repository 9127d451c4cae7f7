// SPDX-License-Identifier: MIT
// Solvers, policies, the tape, the layer and a training step on the CUDA backend: the source is the
// CPU's, so the results have to be.
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/cuda/kernels.cuh>
#include <deq/deq.hpp>

#include "support/maps.hpp"

using namespace deq;
using deq_test::relative_error;

namespace {

template <class B>
Tensor<B> random(const Shape& shape, std::uint32_t seed, double scale) {
  const auto x = deq_test::Noise(seed).vector(shape.size(), scale);
  return Tensor<B>(shape, std::vector<typename B::Scalar>(x.begin(), x.end()));
}

/// What one solve and one gradient give.
struct Outcome {
  std::vector<std::vector<double>> numbers;  ///< z, then w, then every gradient
  std::vector<SampleReport> samples;
  std::vector<AdjointSample> adjoint;
};

template <class B, class Solution>
Outcome outcome(const Solution& solution, const EquilibriumGradients<B>& g) {
  Outcome out;
  const auto add = [&](const Tensor<B>& t) {
    const auto host = t.to_host();
    out.numbers.emplace_back(host.begin(), host.end());
  };
  add(solution.z);
  add(g.adjoint);
  for (const auto* list : {&g.inputs, &g.params})
    for (const Tensor<B>& t : *list)
      if (t) add(t);
  out.samples.assign(solution.report.samples.begin(), solution.report.samples.end());
  out.adjoint.assign(g.report.samples.begin(), g.report.samples.end());
  return out;
}

constexpr Index channels = 4, side = 4;
/// Dense or convolutional, as w is: with one type for both a compiler has half of the work.
constexpr auto function = [](const auto& z, const auto& x, const auto& w, const auto& scale,
                             const auto& shift) {
  if (w.shape().rank() == 2) return tanh(linear(z, w) + (x * scale + shift));
  const Shape shape{z.extent(0), channels, side, side};
  const auto image = nhwc::from_nchw(reshape(z, shape));
  const auto injection = nhwc::from_nchw(reshape(x, shape));
  return flatten(
      nhwc::to_nchw(nhwc::conv_norm(image, w, {.groups = 2, .conv = {.padding = 1}, .relu = true},
                                    {.scale = &scale, .shift = &shift, .addend = &injection})));
};

/// Eight samples of a dense f, the first of which are solved at once since their x is large and
/// f flat there; the last has a NaN.
template <class B, class Solver, class Policy>
Outcome dense(const Solver& solver, const Policy& policy) {
  using S = typename B::Scalar;
  constexpr Index n = 8, dim = 12;
  auto layer = equilibrium<Solver, Policy>(function, solver, policy);
  layer.certified = !std::is_same_v<Policy, Unrolled>;
  std::vector<S> x;
  const auto values = deq_test::Noise(2).vector(n * dim);
  for (std::size_t i = 0; i < values.size(); ++i)
    x.push_back(static_cast<S>(i < values.size() / 2 ? (values[i] < 0 ? -30 : 30) : values[i]));
  x.back() = std::numeric_limits<S>::quiet_NaN();
  const Tensor<B> w = random<B>({dim, dim}, 1, 0.4);
  const auto solution = layer.solve(Tensor<B>({n, dim}, S(0)), inputs(Tensor<B>({n, dim}, x)),
                                    params(w, Tensor<B>({dim}, S(1)), Tensor<B>({dim}, S(0))));
  // The sample that is not finite would spoil the gradient of W for everybody.
  auto h = random<B>({n, dim}, 3, 1).to_host();
  for (std::size_t i = h.size() - dim; i < h.size(); ++i) h[i] = 0;
  EquilibriumGradients<B> g;
  g.inputs.emplace_back(Shape{n, dim});
  g.params.resize(3);
  layer.gradient(solution, Tensor<B>({n, dim}, h), g);
  return outcome<B>(solution, g);
}

/// Five samples of a convolutional f, which need different numbers of steps.
template <class B, class Solver, class Policy>
Outcome convolutional(const Solver& solver, const Policy& policy) {
  using S = typename B::Scalar;
  constexpr Index n = 5, dim = channels * side * side;
  auto layer = equilibrium<Solver, Policy>(function, solver, policy);
  auto x = random<B>({n, dim}, 4, 1).to_host();
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= static_cast<S>(1 + 20 * (i / dim % 2));
  const auto solution =
      layer.solve(Tensor<B>({n, dim}, S(0)), inputs(Tensor<B>({n, dim}, x)),
                  params(random<B>({channels, channels, 3, 3}, 5, 0.3),
                         random<B>({channels}, 6, 0.5), random<B>({channels}, 7, 0.5)));
  return outcome<B>(solution, layer.gradient(solution, random<B>({n, dim}, 8, 1)));
}

template <class S>
void compare(const Outcome& device, const Outcome& host, double tolerance) {
  REQUIRE(device.numbers.size() == host.numbers.size());
  for (std::size_t i = 0; i < host.numbers.size(); ++i) {
    auto a = device.numbers[i], b = host.numbers[i];
    for (std::size_t k = 0; k < b.size(); ++k) {
      CHECK(std::isfinite(a[k]) == std::isfinite(b[k]));
      if (!std::isfinite(b[k])) a[k] = b[k] = 0;
    }
    CHECK(relative_error(a, b) < tolerance);
  }
  for (std::size_t s = 0; s < host.samples.size(); ++s) {
    CHECK(device.samples[s].status == host.samples[s].status);
    if (host.samples[s].status != SolveStatus::converged) continue;
    CHECK(device.samples[s].iterations == host.samples[s].iterations);
    CHECK(device.samples[s].evaluations == host.samples[s].evaluations);
  }
  for (std::size_t s = 0; s < host.adjoint.size(); ++s) {
    CHECK(device.adjoint[s].vjps == host.adjoint[s].vjps);
    CHECK(device.adjoint[s].fell_back == host.adjoint[s].fell_back);
  }
}

/// Tolerances of the solves: tight in double, where the paths of the two backends stay together.
template <class S>
constexpr double solved = std::is_same_v<S, double> ? 1e-9 : 1e-4;
template <class S>
constexpr double same = std::is_same_v<S, double> ? 1e-6 : 2e-2;

template <class S, class Solver, class Policy>
void check(const std::string& name, const Solver& solver, const Policy& policy) {
  INFO(name);
  compare<S>(dense<Cuda<S>>(solver, policy), dense<Cpu<S>>(solver, policy), same<S>);
  compare<S>(convolutional<Cuda<S>>(solver, policy), convolutional<Cpu<S>>(solver, policy),
             same<S>);
}

}  // namespace

TEST_CASE("Every solver and every policy gives what it gives on the CPU") {
  using S = double;
  const Stopping stopping{.max_iterations = 25, .relative_tolerance = solved<S>};
  check<S>("FixedPoint, Exact", FixedPoint{.stopping = stopping}, Exact{});
  check<S>("Anderson, Gdeq", Anderson{.stopping = stopping, .memory = 4}, Gdeq{});
  check<S>("Broyden, Gdeq", Broyden<>{.stopping = stopping, .memory = 6}, Gdeq{.refinements = 2});
  check<S>("Broyden<StepsOnly>, Gdeq", Broyden<StepsOnly>{.stopping = stopping},
           Gdeq{.refinements = 1,
                .refinement = Gdeq::Refinement::minimal_residual,
                .min_norm_ratio = 0.1,
                .max_norm_ratio = 10});
  check<S>("Broyden<CompactSteps>, Jfb", Broyden<CompactSteps>{.stopping = stopping}, Jfb{});
  check<S>("Broyden<Pairs, Armijo>, Npg", Broyden<Pairs, Armijo>{.stopping = stopping}, Npg{});
  check<S>("Broyden, Implicit<Gmres>", Broyden<>{.stopping = stopping},
           Implicit<Gmres>{{.stopping = stopping, .restart = 10}});
  check<S>("Broyden, Implicit<Broyden>", Broyden<>{.stopping = stopping},
           Implicit<>{{.stopping = stopping}});
  check<S>("Unrolled", FixedPoint{.stopping = stopping}, Unrolled{3});
}

namespace {

constexpr auto scaled = [](const auto& z, const auto& x) { return tanh(z * x + x); };

/// Four samples of more numbers than a block has. Factors of z grow from sample to sample, and with
/// them the number of steps; of the last one nothing stays finite.
template <class B, class Solver>
auto solve_long(const Solver& solver) {
  using S = typename B::Scalar;
  constexpr Index dim = 9000;
  auto layer = equilibrium<Solver, Jfb>(scaled, solver);
  std::vector<S> factors = random<B>({4, dim}, 1, 1).to_host();
  for (Index i = 0; i < 4 * dim; ++i)
    factors[static_cast<std::size_t>(i)] *= static_cast<S>(i / dim + 1) / 4;
  factors.back() = std::numeric_limits<S>::quiet_NaN();
  return layer.solve(random<B>({4, dim}, 2, 1), inputs(Tensor<B>({4, dim}, factors)));
}
template <class Solver>
std::vector<SampleReport> compare_long(const Solver& solver) {
  const auto device = solve_long<Cuda<double>>(solver);
  const auto host = solve_long<Cpu<double>>(solver);
  CHECK(relative_error(device.z.to_host(), host.z.to_host()) < 1e-9);
  std::vector<SampleReport> samples;
  for (std::size_t s = 0; s < 4; ++s) {
    const SampleReport &here = device.report.samples[s], &there = host.report.samples[s];
    CHECK(here.status == there.status);
    CHECK(here.iterations == there.iterations);
    CHECK(here.best_iteration == there.best_iteration);
    samples.push_back(here);
  }
  return samples;
}

}  // namespace

TEST_CASE("Samples of several blocks are judged alone or together as on the CPU") {
  for (const Scope scope : {Scope::sample, Scope::batch})
    for (const WhenFull when_full : {WhenFull::restart, WhenFull::freeze}) {
      const Stopping stopping{.max_iterations = 12, .relative_tolerance = 1e-3, .scope = scope};
      const auto samples = compare_long(
          Broyden<StepsOnly>{.stopping = stopping, .memory = 3, .when_full = when_full});
      compare_long(Broyden<>{.stopping = stopping, .memory = 3, .when_full = when_full});
      CHECK(samples[3].status == SolveStatus::non_finite);
      if (scope == Scope::sample) {
        CHECK(samples[0].status == SolveStatus::converged);
        CHECK(samples[0].iterations < samples[2].iterations);
      }
    }
}

TEST_CASE("In single precision as well") {
  using S = float;
  const Stopping stopping{.max_iterations = 25, .relative_tolerance = solved<S>};
  check<S>("Broyden<CompactSteps>, Gdeq", Broyden<CompactSteps>{.stopping = stopping}, Gdeq{});
}

// --- Images stored as bfloat16 -----------------------------------------------------------------

namespace {

template <class B>
void add_to(std::vector<std::vector<double>>& list, const Tensor<B>& t) {
  const auto host = t.to_host();
  list.emplace_back(host.begin(), host.end());
}

/// Images in operations on images, on tensors, and on both; every gradient, also that of an image.
template <class B>
std::vector<std::vector<double>> mixed_operations() {
  const Tensor<B> x = random<B>({3, 4, 4, 8}, 1, 1), w = random<B>({8, 8, 3, 3}, 2, 0.2),
                  big = random<B>({3, 8, 8, 8}, 3, 1);
  Tape<B> tape;
  const std::array leaves{tape.input(x), tape.input(w), tape.input(big)};
  const Var<B> y =
      nhwc::conv_norm(leaves[0], leaves[1], {.groups = 2, .conv = {.padding = 1}, .relu = true});
  const Var<B> sum = nhwc::upsample_add(leaves[2], y, 2);
  const Var<B> scalars = tanh(y) * typename B::Scalar(0.5) + y;
  const Var<B> out = concat(1, flatten(sum), flatten(scalars), flatten(nhwc::to_nchw(y)));
  std::vector<std::vector<double>> list;
  for (const Var<B>* v : {&y, &sum, &scalars, &out}) add_to(list, v->value());
  const auto pull_back = [&](const Var<B>& from, std::vector<Var<B>> wrt) {
    std::vector<Tensor<B>> gradients;
    for (const Var<B>& v : wrt) gradients.emplace_back(v.shape());
    tape.vjp(from, random<B>(from.shape(), 4, 1), wrt, gradients);
    for (const Tensor<B>& g : gradients) add_to(list, g);
  };
  pull_back(out, {leaves[0], leaves[1], leaves[2], y});
  pull_back(y, {leaves[0], leaves[1]});
  pull_back(y, {y, leaves[0]});
  return list;
}

/// A layer whose state is an image.
template <class B>
std::vector<std::vector<double>> image_layer() {
  auto layer = equilibrium<Broyden<CompactSteps>, Gdeq>(
      [](const auto& z, const auto& x, const auto& w, const auto& scale) {
        return nhwc::conv_norm(z, w, {.groups = 2, .conv = {.padding = 1}, .relu = true},
                               {.scale = &scale, .addend = &x});
      },
      {.stopping = {.max_iterations = 15, .relative_tolerance = 1e-2}}, Gdeq{});
  const Shape shape{5, 4, 4, 8};
  const auto solution =
      layer.solve(Tensor<B>(shape, 0), inputs(random<B>(shape, 4, 3)),
                  params(random<B>({8, 8, 3, 3}, 5, 0.1), random<B>({8}, 6, 0.5)));
  const auto g = layer.gradient(solution, random<B>(shape, 8, 1));
  std::vector<std::vector<double>> list;
  add_to(list, solution.z);
  for (const auto* gradients : {&g.inputs, &g.params})
    for (const Tensor<B>& t : *gradients) add_to(list, t);
  return list;
}

}  // namespace

TEST_CASE("Images stored as bfloat16 go through every operation, and so do their cotangents") {
  using B = Cuda<float, cuda::Bf16>;
  const auto compare = [](const auto& device, const auto& host) {
    REQUIRE(device.size() == host.size());
    for (std::size_t i = 0; i < host.size(); ++i) {
      CAPTURE(i);
      CHECK(relative_error(device[i], host[i]) < 0x1p-5);
    }
  };
  compare(mixed_operations<B>(), mixed_operations<Cpu<double>>());
  compare(image_layer<B>(), image_layer<Cpu<double>>());
}

TEST_CASE("A compact tensor is half as large, and its memory is not mistaken for scalars") {
  using B = Cuda<float, cuda::Bf16>;
  const Tensor<B> x = random<B>({2, 2, 2, 8}, 1, 1);
  const Tensor<B> y = nhwc::group_norm(x, {.groups = 2});
  CHECK(!x.compact());
  CHECK(y.compact());
  CHECK_THROWS_AS(y.data(), InvalidArgument);
  CHECK_THROWS_AS(x.image_data(), InvalidArgument);
  const std::vector<float> values = y.to_host();
  CHECK(y.clone().to_host() == values);
  CHECK(as_scalars(y).to_host() == values);
  CHECK(as_scalars(x).data() == x.data());
  CHECK(y.rows(1, 1).to_host() == std::vector<float>(values.begin() + 32, values.end()));
  CHECK(y.reshaped({4, 16}).to_host() == values);
  CHECK(Tensor<B>(y).compact());
  const Tensor<B> frozen = x.frozen();
  const auto image = [&] { return nhwc::upsample_add(frozen, frozen, 1); };
  CHECK(image().to_host() == image().to_host());
  for (const float v : values) CHECK(v == static_cast<float>(Bfloat16(v)));
}

TEST_CASE("Statistics of the whole batch are refused where some of it may not be computed") {
  using B = Cuda<float>;
  const Tensor<B> images = random<B>({2, 4, 4, 8}, 1, 1), planes = random<B>({2, 8, 4, 4}, 1, 1),
                  w = random<B>({8, 8, 1, 1}, 2, 1);
  BatchNormState<B> state(8);
  const auto fused = [&] { nhwc::conv_batch_norm(images, w, state, BatchNormMode::train, {}); };
  const auto alone = [&] { batch_norm(planes, state, BatchNormMode::train); };
  const std::array<Index, 2> ids{0, 1};
  const Array<B, Index> on_device(2);
  B::upload_bytes(on_device.data(), ids.data(), sizeof ids);
  {
    const B::Rows rows(Samples{on_device.data(), 2});
    CHECK_THROWS_WITH_AS(fused(), doctest::Contains("statistics of a batch"), InvalidArgument);
    CHECK_THROWS_WITH_AS(alone(), doctest::Contains("statistics of a batch"), InvalidArgument);
  }
  CHECK_NOTHROW(fused());
  CHECK_NOTHROW(alone());
}

TEST_CASE_TEMPLATE("A frozen weight is packed for every convolution that it serves", B, Cpu<float>,
                   Cuda<float, cuda::Bf16>) {
  const Tensor<B> x = random<B>({2, 16, 16, 8}, 1, 1), w = random<B>({40, 8, 3, 3}, 2, 1),
                  frozen = w.frozen();
  for (const Index stride : {1, 2})
    for (const Index padding : {0, 1}) {
      CAPTURE(stride);
      CAPTURE(padding);
      const auto y = [&](const Tensor<B>& weight) {
        return nhwc::conv_norm(x, weight, {.conv = {.stride = stride, .padding = padding}})
            .to_host();
      };
      CHECK(y(frozen) == y(w));
    }
}

TEST_CASE("An MDEQ cuts and joins its state the same whatever its images are stored as") {
  using B = Cuda<float, cuda::Bf16>;
  const MdeqConfig config = MdeqConfig::tiny();
  const Tensor<B> z = random<B>({2, config.state_size()}, 1, 1);
  CHECK(mdeq_state_from_nchw(config, mdeq_state_to_nchw(config, z)).to_host() == z.to_host());
  const std::vector<float> exact = z.to_host(),
                           rounded = mdeq_state(mdeq_branches(config, z)).to_host();
  bool same = true;
  for (std::size_t i = 0; i < exact.size(); ++i)
    same = same && rounded[i] == static_cast<float>(Bfloat16(exact[i]));
  CHECK(same);
}

namespace {

/// f of an MDEQ with three branches, which has all kinds of paths, and the gradient of everything.
template <class B>
std::vector<std::vector<double>> three_branches() {
  const MdeqConfig config{.channels = {8, 8, 16},
                          .head_channels = {2, 2, 4},
                          .final_channels = 10,
                          .image_size = 8,
                          .expansion = 2,
                          .groups = 4};
  const Mdeq<B> model(config, 3);
  const MdeqFunction f = model.function(false);
  const std::array<Tensor<B>, 1> x{random<B>({2, 8, 8, 8}, 2, 1)};
  std::vector<Tensor<B>> theta;
  for (std::size_t i = model.layout().stem_end; i < model.layout().layer_end; ++i)
    if (model.layout().parameters[i].initial != Initial::norm_of_v)
      theta.push_back(
          random<B>(model.layout().parameters[i].shape, static_cast<std::uint32_t>(i), 0.5));
  const Tensor<B> z = random<B>({2, config.state_size()}, 1, 1);
  std::vector<std::vector<double>> list;
  add_to(list, f(z, std::span<const Tensor<B>>(x), std::span<const Tensor<B>>(theta)));

  Tape<B> tape;
  std::vector<Var<B>> wrt{tape.input(z), tape.input(x[0])};
  for (const Tensor<B>& t : theta) wrt.push_back(tape.input(t));
  const std::span<const Var<B>> all(wrt);
  const Var<B> out = f(all[0], all.subspan(1, 1), all.subspan(2));
  std::vector<Tensor<B>> gradients;
  for (const Var<B>& v : wrt) gradients.emplace_back(v.shape());
  tape.vjp(out, random<B>(out.shape(), 4, 1), wrt, gradients);
  for (const Tensor<B>& g : gradients) add_to(list, g);
  return list;
}

}  // namespace

TEST_CASE("An f whose branches and paths go side by side is the f that takes them in turn") {
  const auto device = three_branches<Cuda<double>>(), host = three_branches<Cpu<double>>();
  REQUIRE(device.size() == host.size());
  for (std::size_t i = 0; i < host.size(); ++i) {
    CAPTURE(i);
    CHECK(relative_error(device[i], host[i]) < 1e-10);
  }
}
