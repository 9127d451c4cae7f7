// SPDX-License-Identifier: MIT
// Work that is recorded once gives, at every launch, what it gives when it is done at once.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/cuda/kernels.cuh>
#include <deq/deq.hpp>

#include "support/maps.hpp"

using namespace deq;
using deq_test::relative_error;

namespace {

using B = Cuda<float>;

Tensor<B> random(const Shape& shape, std::uint32_t seed, double scale) {
  const auto x = deq_test::Noise(seed).vector(shape.size(), scale);
  return Tensor<B>(shape, std::vector<float>(x.begin(), x.end()));
}
/// New numbers in the same memory.
void assign(const Tensor<B>& to, const Tensor<B>& from) {
  B::copy_bytes(to.data(), from.data(), static_cast<std::size_t>(to.size()) * sizeof(float));
}
std::vector<double> host(const Tensor<B>& t) {
  const auto values = t.to_host();
  return {values.begin(), values.end()};
}

auto tanh_layer(auto solver, auto policy) {
  return equilibrium<decltype(solver), decltype(policy)>(
      [](const auto& z, const auto& x, const auto& w) { return tanh(linear(z, w) + x); }, solver,
      policy);
}

/// Inputs of which some are solved in fewer steps than others, more of them with every seed.
Tensor<B> uneven_inputs(Index n, Index dim, std::uint32_t seed) {
  auto x = random({n, dim}, seed, 1).to_host();
  for (std::size_t i = 0; i < x.size() * seed / 12; ++i) x[i] *= 40;
  return Tensor<B>({n, dim}, x);
}

template <class Solver, class Policy>
void check_recorded(const Solver& solver, const Policy& policy) {
  constexpr Index n = 6, dim = 10;
  auto layer = tanh_layer(solver, policy), direct = tanh_layer(solver, policy);
  layer.certified = direct.certified = !std::is_same_v<Policy, Unrolled>;
  const Tensor<B> z0({n, dim}, 0.f), x({n, dim}), w = random({dim, dim}, 1, 0.4),
                                                  h = random({n, dim}, 2, 1);
  assign(x, uneven_inputs(n, dim, 3));
  auto solution = layer.solve(z0, inputs(x), params(w));
  auto gradients = layer.gradient(solution, h);
  const auto work = [&] {
    layer.solve(z0, inputs(x), params(w), solution);
    layer.gradient(solution, h, gradients);
  };
  cuda::Graph graph(work);
  for (const std::uint32_t seed : {4u, 8u, 5u}) {
    assign(x, uneven_inputs(n, dim, seed));
    graph.launch();
    graph.finish();
    const auto expected = direct.solve(z0, inputs(x), params(w));
    const auto expected_gradients = direct.gradient(expected, h);
    CHECK(host(solution.z) == host(expected.z));
    CHECK(host(gradients.inputs[0]) == host(expected_gradients.inputs[0]));
    CHECK(host(gradients.params[0]) == host(expected_gradients.params[0]));
    for (std::size_t s = 0; s < static_cast<std::size_t>(n); ++s) {
      CHECK(solution.report.samples[s].status == expected.report.samples[s].status);
      CHECK(solution.report.samples[s].iterations == expected.report.samples[s].iterations);
      CHECK(solution.report.samples[s].relative == expected.report.samples[s].relative);
      CHECK(gradients.report.samples[s].vjps == expected_gradients.report.samples[s].vjps);
      CHECK(gradients.report.samples[s].residual == expected_gradients.report.samples[s].residual);
    }
  }
}

}  // namespace

TEST_CASE("A recorded solve and its gradient, with every solver and policy") {
  const Stopping stopping{.max_iterations = 20, .relative_tolerance = 1e-4};
  check_recorded(Broyden<StepsOnly>{.stopping = stopping}, Gdeq{.max_norm_ratio = 1.01});
  check_recorded(Broyden<CompactSteps>{.stopping = stopping}, Gdeq{});
  check_recorded(Broyden<>{.stopping = stopping, .memory = 5}, Gdeq{.refinements = 1});
  check_recorded(Broyden<Pairs, Armijo>{.stopping = stopping}, Jfb{});
  check_recorded(Anderson{.stopping = stopping, .memory = 3}, Npg{});
  check_recorded(FixedPoint{.stopping = stopping}, Implicit<>{{.stopping = stopping}});
  check_recorded(FixedPoint{.stopping = stopping},
                 Implicit<Gmres>{{.stopping = stopping, .restart = 5}});
  check_recorded(FixedPoint{.stopping = stopping}, Unrolled{3});
}

TEST_CASE("A recorded solve ends when everybody has converged") {
  constexpr Index n = 4, dim = 6;
  // f counts on the device how often it is evaluated there.
  const Tensor<B> count({1, 1}), one({1, 1}, 1.f);
  Everybody<B> everybody;
  const Samples counter = everybody(1);
  auto layer = equilibrium<Broyden<StepsOnly>, Jfb>(
      [&](const auto& z, const auto& input, const auto& weight) {
        B::axpby(counter, 1.f, one.batch(), 1.f, count.batch());
        return tanh(linear(z, weight) + input);
      },
      {.stopping = {.max_iterations = 30}}, Jfb{});
  const Tensor<B> z0({n, dim}, 0.f), x({n, dim}, 40.f), w = random({dim, dim}, 1, 0.4);
  auto solution = layer.solve(z0, inputs(x), params(w));
  cuda::Graph graph([&] { layer.solve(z0, inputs(x), params(w), solution); });
  const auto evaluations = [&] {
    B::fill(count.data(), 1, 0.f);
    graph.launch();
    graph.finish();
    int most = 0;
    for (const SampleReport& sample : solution.report.samples)
      most = std::max(most, sample.evaluations);
    CHECK(host(count)[0] == most);
    return host(count)[0];
  };
  const double easy = evaluations();
  CHECK(solution.report.all_converged());
  CHECK(easy < 5);
  assign(x, random({n, dim}, 5, 0.5));
  CHECK(evaluations() > easy + 3);
  CHECK(solution.report.all_converged());
}

TEST_CASE("What a graph uses is nobody else's, until the graph is gone") {
  const auto make = [] { return Tensor<B>({1000}, 1.f); };
  const float* place = nullptr;
  Tensor<B> kept;
  {
    const Tensor<B> x({1000}, 2.f), y({1000});
    cuda::Graph graph([&] {
      const Tensor<B> temporary = square(x);
      place = temporary.data();
      kept = temporary + temporary;
      B::copy_bytes(y.data(), kept.data(), 1000 * sizeof(float));
    });
    const Tensor<B> others[] = {make(), make(), make()};
    for (const Tensor<B>& other : others) CHECK(other.data() != place);
    graph.launch();
    graph.finish();
    for (const Tensor<B>& other : others) CHECK(host(other) == std::vector<double>(1000, 1));
    CHECK(host(y) == std::vector<double>(1000, 8));
    CHECK(graph.bytes() >= 2 * 1000 * sizeof(float));
    kept = {};  // its memory stays with the graph
    CHECK(make().data() != place);
  }
  const Tensor<B> again[] = {make(), make(), make(), make(), make()};
  CHECK(std::any_of(std::begin(again), std::end(again),
                    [&](const Tensor<B>& t) { return t.data() == place; }));
}

TEST_CASE("What two graphs have named is nobody's until both are gone") {
  Tensor<B> shared({1000}, 2.f);
  const float* const place = shared.data();
  const Tensor<B> y({1000});
  const auto work = [&] { B::copy_bytes(y.data(), shared.data(), 1000 * sizeof(float)); };
  auto first = std::make_unique<cuda::Graph>(work);
  auto second = std::make_unique<cuda::Graph>(work);
  shared = {};
  const auto is_free = [&] {
    std::vector<Tensor<B>> others;
    for (int i = 0; i < 5; ++i) others.emplace_back(Shape{1000}, 1.f);
    return std::any_of(others.begin(), others.end(),
                       [&](const Tensor<B>& t) { return t.data() == place; });
  };
  CHECK(!is_free());
  first.reset();
  CHECK(!is_free());
  second->launch();
  second->finish();
  CHECK(host(y) == std::vector<double>(1000, 2));
  second.reset();
  CHECK(is_free());
}

TEST_CASE("What a graph has named may be used for larger things, and is still the graph's") {
  constexpr Index n = 3, dim = 8, many = 40;
  auto layer = tanh_layer(Broyden<StepsOnly>{.stopping = {.max_iterations = 12}}, Gdeq{});
  const Tensor<B> z0({n, dim}, 0.f), x = random({n, dim}, 1, 1), w = random({dim, dim}, 2, 0.4),
                                     h = random({n, dim}, 3, 1);
  auto solution = layer.solve(z0, inputs(x), params(w));
  auto gradients = layer.gradient(solution, h);
  const auto expected = host(solution.z), expected_gradient = host(gradients.params[0]);
  const auto expected_steps = solution.report.max_iterations();
  cuda::Graph graph([&] {
    layer.solve(z0, inputs(x), params(w), solution);
    layer.gradient(solution, h, gradients);
  });
  // The workspaces grow: what they had before is not to be given to anybody.
  const Tensor<B> more = random({many, dim}, 4, 1);
  auto other = layer.solve(Tensor<B>({many, dim}, 0.f), inputs(more), params(w));
  const auto other_gradients = layer.gradient(other, more);
  std::vector<Tensor<B>> bystanders;
  for (Index size = 1; size < 5000; size += size / 3 + 1) bystanders.emplace_back(Shape{size}, 7.f);
  graph.launch();
  graph.finish();
  CHECK(host(solution.z) == expected);
  CHECK(host(gradients.params[0]) == expected_gradient);
  CHECK(solution.report.samples.size() == n);
  CHECK(solution.report.max_iterations() == expected_steps);
  bool untouched = true;
  for (const Tensor<B>& t : bystanders)
    for (const double v : host(t)) untouched = untouched && v == 7;
  CHECK(untouched);
}

TEST_CASE("Phases share their memory, whatever the sizes of their tensors") {
  if (std::getenv("DEQ_CUDA_MEMORY_APART")) return;
  constexpr Index n = 3 << 20;
  cuda::DevicePool& pool = cuda::DevicePool::instance();
  const auto phases = [] {
    { const Tensor<B> basis({n}, 1.f); }
    const Tensor<B> small({5}, 1.f), first({n / 3}, 1.f), second({n / 3}, 2.f);
    return first + second;
  };
  pool.trim();
  const std::size_t before = pool.bytes();
  phases();
  const std::size_t needed = pool.bytes() - before;
  CHECK(needed >= n * sizeof(float));
  CHECK(needed < 1.25 * n * sizeof(float));
  Tensor<B> sum;
  cuda::Graph graph([&] { sum = phases(); });
  CHECK(pool.bytes() - before == needed);
  graph.launch();
  graph.finish();
  CHECK(host(sum) == std::vector<double>(n / 3, 3));
}

namespace {
/// An empty solution for one input and no parameters. Not decltype(layer)::Solution: in front of
/// the host's compiler nvcc writes the type of a layer of a lambda in two ways.
template <class Layer>
typename Layer::template Solution<B, 1, 0> new_solution(const Layer&) {
  return {};
}
}  // namespace

TEST_CASE("Steps of one size keep to the memory they have, and their recording to less") {
  if (std::getenv("DEQ_CUDA_MEMORY_APART")) return;
  constexpr Index n = 16, dim = 20000, memory = 6;  // vectors of more than a megabyte
  auto layer = equilibrium<Broyden<StepsOnly>, Gdeq>(
      [](const auto& z, const auto& x) { return tanh(z * 0.5f + x); },
      Broyden<StepsOnly>{.stopping = {.max_iterations = 3}, .memory = memory});
  const Tensor<B> u({n, dim}, 0.1f), z0({n, dim}, 0.f), gradient({n, dim});
  auto solution = new_solution(layer);
  Tape<B> tape;
  Tensor<B> kept;  // what outlives a step
  const auto step = [&] {
    tape.clear();
    const std::vector<Var<B>> wrt{tape.input(u)};
    const Var<B> z = record_equilibrium(layer, z0, inputs(wrt[0]), no_params<Var<B>>(),
                                        Output::applied, solution);
    const Var<B> loss = mean(square(z));
    tape.vjp_and_clear(loss, Tensor<B>({}, 1.f), wrt, std::span<const Tensor<B>>(&gradient, 1));
    kept = z.value();
  };
  cuda::DevicePool& pool = cuda::DevicePool::instance();
  pool.trim();
  const std::size_t before = pool.bytes();
  const auto bytes = [&] { return pool.bytes() - before; };
  for (int i = 0; i < 3; ++i) step();
  const std::size_t steady = bytes();
  for (int i = 0; i < 3; ++i) step();
  CHECK(bytes() == steady);
  CHECK(pool.peak_bytes() - before >= steady);
  cuda::Graph graph(step);
  pool.trim();
  CHECK(bytes() <= steady);
  pool.reset_peak();
  CHECK(pool.peak_bytes() == pool.bytes());
}

TEST_CASE("Reports are delivered once a launch") {
  const Tensor<B> x({5}, 2.f), y({5});
  int delivered = 0;
  float last = 0;
  cuda::Graph graph([&] {
    elementwise(B{}, 5, std::multiplies<float>{}, y.data(), x.data(), x.data());
    B::when_done([&] { ++delivered; });
    B::when_downloaded(y.data() + 4, 1, [&](std::span<const float> v) { last = v[0]; });
  });
  CHECK(delivered == 0);
  graph.finish();
  CHECK(delivered == 0);
  graph.launch();
  graph.launch();
  CHECK(delivered == 1);
  graph.finish();
  graph.finish();
  CHECK(delivered == 2);
  CHECK(last == 4);
}

TEST_CASE("A thread may work while another one records") {
  const Tensor<B> x = random({2, 3}, 1, 1), y({2, 3}), z = random({2, 3}, 2, 1);
  std::vector<double> seen;
  std::exception_ptr failed;
  const auto of_another = [&] {
    try {
      seen = host(z + z);
    } catch (...) {
      failed = std::current_exception();
    }
  };
  cuda::Graph graph([&] {
    assign(y, x + x);
    std::thread(of_another).join();
    assign(y, y + x);
  });
  REQUIRE_FALSE(failed);
  CHECK(seen == host(2.f * z));
  seen.clear();
  graph.launch();
  graph.finish();
  CHECK(relative_error(host(y), host(3.f * x)) < 1e-6);
  CHECK(seen.empty());
}

TEST_CASE("What cannot be recorded says so, and leaves the stream as it was") {
  const Tensor<B> x({4}, 1.f);
  CHECK_THROWS_AS(cuda::Graph([&] { Tensor<B>({2}, {1.f, 2.f}); }), DeviceError);
  CHECK_THROWS_AS(cuda::Graph([&] { x.to_host(); }), DeviceError);
  CHECK_THROWS_AS(cuda::Graph([&] { cuda::Graph inner([] {}); }), DeviceError);
  CHECK_THROWS_AS(cuda::Graph([&] { x + Tensor<B>({3}, 1.f); }), ShapeError);
  CHECK(host(square(x)) == std::vector<double>(4, 1));
}

namespace {
/// A recording of `work` leaves in `result` what it leaves there when it is done at once, in
/// whatever order what may run at the same time runs; `other` is what is there before.
template <class Work>
void check_in_every_order(const Tensor<B>& result, const Tensor<B>& other, Work work) {
  work();
  const std::vector<double> expected = host(result);
  cuda::Graph graph(work);
  const auto check = [&] {
    assign(result, other);
    graph.launch();
    graph.finish();
    CHECK(host(result) == expected);
  };
  check();
#ifdef DEQ_CUDA_EMULATION
  using deq_emulation::Order;
  deq_emulation::set_order(Order::backward);
  check();
  for (std::uint32_t seed = 1; seed < 9; ++seed) {
    deq_emulation::set_order(Order::shuffled, seed);
    check();
  }
  deq_emulation::set_order(Order::forward);
#endif
}
}  // namespace

TEST_CASE("Works side by side do not disturb each other, in whatever order they run") {
  constexpr Index n = 700, lanes = 4;
  const Tensor<B> x = random({n}, 1, 1), sum({n});
  const auto work = [&] {
    Tensor<B> before = x * 2.f;  // read in every lane, and given back in one
    std::vector<Tensor<B>> results;
    B::side_by_side(lanes, [&](Index i) {
      Tensor<B> y = tanh(before + x * static_cast<float>(i));
      for (int k = 0; k < 3; ++k) y = tanh(y * 1.5f + x);  // gives back what it had
      results.push_back(x * y);
      results.push_back(before * y);
      if (i == 2) before = x;
      y = exp(x) * 0.5f;
      B::side_by_side(2, [&](Index j) { results.push_back(y * static_cast<float>(i + j)); });
    });
    Tensor<B> total = before;
    for (std::size_t i = 0; i < results.size(); ++i)
      total = total * 0.5f + results[i] * static_cast<float>(i + 1);
    assign(sum, total);
  };
  check_in_every_order(sum, x, work);
}

TEST_CASE(
    "The phases of a strided convolution's transpose run in any order, and before what follows") {
  const Conv2dGeometry g{2, 16, 7, 8, 24, 3, 3, 2, 1};
  const Tensor<B> dy = random({2, 4, 4, 24}, 1, 1), w = random({24, 16, 3, 3}, 2, 1),
                  dx({2, 7, 8, 16}), twice(dx.shape()), other(dx.shape()),
                  packed({nhwc_packed_size(B{}, g, true)});
  nhwc_pack(B{}, g, true, w.data(), packed.data());
  const auto work = [&] {
    nhwc_conv2d_vjp_input(B{}, g, packed.data(), dy.data(), dx.data(), false);
    assign(twice, dx * 2.f);
    B::side_by_side(2, [&](Index i) {
      if (i == 1) return nhwc_conv2d_vjp_input(B{}, g, packed.data(), dy.data(), dx.data(), true);
      assign(other, twice * 2.f);
    });
    assign(other, other + dx);
  };
  check_in_every_order(other, twice, work);
}

TEST_CASE("Lanes that share a cotangent do not overwrite it for each other") {
  using Half = Cuda<float, cuda::Bf16>;
  const auto random = [](const Shape& shape, std::uint32_t seed) {
    const auto x = deq_test::Noise(seed).vector(shape.size(), 1);
    return Tensor<Half>(shape, std::vector<float>(x.begin(), x.end()));
  };
  const Tensor<Half> x = random({3, 4, 4, 8}, 1), cotangent = random(x.shape(), 2);
  const std::array w{random({8, 8, 3, 3}, 3), random({8, 8, 3, 3}, 4)};
  const std::array gradients{Tensor<Half>(w[0].shape()), Tensor<Half>(w[1].shape())};
  Tape<Half> tape;
  const auto work = [&] {
    tape.clear();
    const std::array wrt{tape.input(w[0]), tape.input(w[1])};
    std::vector<Var<Half>> out;
    side_by_side(wrt[0], 2, [&](Index i) {
      out.push_back(nhwc::conv_norm(Var<Half>(x), wrt[static_cast<std::size_t>(i)],
                                    {.groups = 2, .conv = {.padding = 1}}));
    });
    tape.vjp_and_clear(nhwc::upsample_add(out[0], out[1], 1), cotangent, wrt, gradients);
  };
  work();
  const std::array expected{gradients[0].to_host(), gradients[1].to_host()};
  cuda::Graph graph(work);
  const auto check = [&] {
    graph.launch();
    graph.finish();
    for (std::size_t i = 0; i < 2; ++i) CHECK(gradients[i].to_host() == expected[i]);
  };
  check();
#ifdef DEQ_CUDA_EMULATION
  for (std::uint32_t seed = 1; seed < 6; ++seed) {
    deq_emulation::set_order(deq_emulation::Order::shuffled, seed);
    check();
  }
  deq_emulation::set_order(deq_emulation::Order::forward);
#endif
}
