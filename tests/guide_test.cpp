// SPDX-License-Identifier: MIT
// The code of docs/guide.md, compiled and run; docs_check.sh sees to it that the two agree.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <unistd.h>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <deq/deq.hpp>

namespace {

using Tensor = deq::Tensor<deq::Cpu<float>>;

const auto f = [](const auto& z, const auto& x, const auto& W, const auto& b) {
  return tanh(linear(z, W, b) + x);
};

Tensor uniform(const deq::Shape& shape, std::uint32_t stream, double bound = 1) {
  deq::Random random(1, deq::Purpose::user, stream);
  std::vector<float> values(static_cast<std::size_t>(shape.size()));
  for (float& v : values) v = static_cast<float>(random.uniform(-bound, bound));
  return Tensor(shape, values);
}

// An operation of one's own: y = x / (1 + |x|).
template <class B>
struct Softsign {
  using S = typename B::Scalar;
  static constexpr bool saves_inputs = true, saves_output = false;

  deq::Tensor<B> forward(const deq::Tensor<B>& x) {
    deq::Tensor<B> y(x.shape());
    elementwise(
        B{}, x.size(), [](S a) { return a / (1 + std::abs(a)); }, y.data(), x.data());
    return y;
  }
  void vjp(const deq::Reverse<B>& r) const {
    if (r.grad[0])
      r.grad[0].write([](S c, S x) { return c / ((1 + std::abs(x)) * (1 + std::abs(x))); },
                      r.cotangent.data(), r.input[0].data());
  }
};
template <deq::TensorLike X>
auto softsign(const X& x) {
  return deq::record(Softsign<typename X::Backend>{}, x);
}

}  // namespace

TEST_CASE("guide: solve") {
  const Tensor W = uniform({50, 50}, 1, 0.15), b = uniform({50}, 2), x = uniform({32, 50}, 3);

  auto layer = deq::equilibrium<deq::Broyden<>, deq::Jfb>(f);
  layer.solver.stopping.relative_tolerance = 1e-4;
  const Tensor z0({32, 50}, 0);
  auto eq = layer.solve(z0, inputs(x), params(W, b));

  for (const deq::SampleReport& sample : eq.report.samples)
    if (!sample.converged())
      std::printf("%s after %d steps, residual %.1e\n", name(sample.status).data(),
                  sample.iterations, sample.relative);

  CHECK(eq.report.all_converged());
  CHECK(eq.report.worst_relative() <= 1e-4);

  const Tensor new_x = uniform({32, 50}, 4, 0.01) + x;
  layer.solve(eq.z, inputs(new_x), params(W, b), eq);  // a warm start, into the same memory

  CHECK(eq.report.all_converged());
}

TEST_CASE("guide: choices") {
  const Tensor W = uniform({50, 50}, 1, 0.15), b = uniform({50}, 2), x = uniform({8, 50}, 3);
  const Tensor z0({8, 50}, 0);
  const auto converges = [&](auto layer) {
    layer.solver.stopping.relative_tolerance = 1e-4;
    return layer.solve(z0, inputs(x), params(W, b)).report.all_converged();
  };

  using deq::Anderson, deq::Armijo, deq::Broyden, deq::equilibrium, deq::FixedPoint, deq::Gdeq,
      deq::Jfb, deq::Pairs, deq::StepsOnly;
  auto low_memory = equilibrium<Broyden<StepsOnly>, Gdeq>(f);
  auto careful = equilibrium<Broyden<Pairs, Armijo>, Gdeq>(f);
  auto anderson = equilibrium(f, Anderson{.memory = 5, .beta = 0.8}, Gdeq{});
  auto picard = equilibrium(f, FixedPoint{.stopping = {.max_iterations = 200}}, Jfb{});

  CHECK(converges(std::move(low_memory)));
  CHECK(converges(std::move(careful)));
  CHECK(converges(std::move(anderson)));
  CHECK(converges(std::move(picard)));
}

TEST_CASE("guide: gradients") {
  const Tensor W = uniform({50, 50}, 1, 0.15), b = uniform({50}, 2), x = uniform({32, 50}, 3);
  const Tensor z0({32, 50}, 0), target = uniform({32, 50}, 4);

  auto layer = deq::equilibrium<deq::Broyden<>, deq::Gdeq>(f);
  layer.policy.refinements = 2;
  layer.certified = true;
  const auto eq = layer.solve(z0, inputs(x), params(W, b));
  const Tensor h = eq.z - target;  // dl/dz* of the loss ||z* - target||^2 / 2
  const auto grad = layer.gradient(eq, h);
  // grad.params[0] is dl/dW, grad.params[1] dl/db, grad.inputs[0] dl/dx
  std::printf("||h - (I - J^T) w|| / ||h|| <= %.1e after %.0f VJPs\n", grad.report.worst_residual(),
              grad.report.mean_vjps());

  CHECK(grad.report.worst_residual() < 0.2);
  CHECK(grad.report.mean_vjps() == 2);
  CHECK(grad.params[0].shape() == W.shape());
  CHECK(grad.inputs[0].shape() == x.shape());
}

TEST_CASE("guide: samples that did not converge") {
  // z = x z^2 + 1/2: there is no such number for the second sample.
  auto layer = deq::equilibrium<deq::Broyden<>, deq::Gdeq>(
      [](const auto& z, const auto& x, const auto& a) { return x * square(z) + a; });
  const Tensor x({2, 1}, {.25F, 50}), a({1}, .5F), target({2, 1}, 0);
  const auto eq = layer.solve(Tensor({2, 1}, 0), inputs(x), params(a));
  REQUIRE(eq.report.samples[0].converged());
  REQUIRE_FALSE(eq.report.samples[1].converged());

  Tensor h = eq.z - target;
  for (deq::Index i = 0; i < h.extent(0); ++i)
    if (!eq.report.samples[static_cast<std::size_t>(i)].converged())
      std::fill_n(h.rows(i, 1).data(), h.rows(i, 1).size(), 0.F);

  // dl/da = z / (1 - z / 2) of the first alone
  const float z = eq.z.data()[0];
  CHECK(layer.gradient(eq, h).params[0].item() == doctest::Approx(z / (1 - z / 2)).epsilon(0.02));
}

TEST_CASE("guide: train") {
  const Tensor images = uniform({64, 20}, 5);
  std::vector<deq::Index> labels(64);
  for (deq::Index i = 0; i < 64; ++i) labels[static_cast<std::size_t>(i)] = i % 4;

  // x = U images, z* = f(z*, x, W, b), logits = V z*
  deq::Parameters<deq::Cpu<float>> parameters;
  for (const auto& [name, shape] : {std::pair<const char*, deq::Shape>{"U", {50, 20}},
                                    {"W", {50, 50}},
                                    {"b", {50}},
                                    {"V", {4, 50}}}) {
    parameters.emplace_back(name, shape);
    parameters.back().value = uniform(shape, static_cast<std::uint32_t>(parameters.size()), 0.1);
  }
  deq::Adam<deq::Cpu<float>> adam(parameters);
  auto layer = deq::equilibrium<deq::Broyden<>, deq::Gdeq>(f);
  decltype(layer)::Solution<deq::Cpu<float>, 1, 2> eq;  // 1 input, 2 parameters
  const Tensor z0({64, 50}, 0);
  deq::Tape<deq::Cpu<float>> tape;

  float first = 0, last = 0;
  for (int step = 0; step < 25; ++step) {
    tape.clear();
    std::vector<deq::Var<deq::Cpu<float>>> p;
    std::vector<Tensor> gradients;
    for (const auto& parameter : parameters) {
      p.push_back(tape.input(parameter.value));
      gradients.push_back(parameter.grad);
    }
    const auto x = linear(images, p[0]);
    const auto z =
        record_equilibrium(layer, z0, inputs(x), params(p[1], p[2]), deq::Output::state, eq);
    const auto loss = softmax_cross_entropy(linear(z, p[3]), labels);
    tape.vjp(loss, Tensor({}, 1), p, gradients);
    adam.step(parameters, 3e-3);

    last = loss.value().item();
    if (step == 0) first = last;
  }
  CHECK(last < 0.8F * first);

  const auto path = std::filesystem::temp_directory_path() /
                    deq::message("deq_guide_", ::getpid(), ".safetensors");
  const std::vector<float> W = parameters[1].value.to_host();

  deq::SafetensorsWriter writer;
  for (const auto& parameter : parameters)
    writer.add<float>(parameter.name, parameter.value.shape(), parameter.value.to_host());
  writer.write(path);
  const auto file = deq::SafetensorsFile::open(path);
  for (auto& parameter : parameters)
    parameter.value =
        deq::read_tensor<deq::Cpu<float>>(file, parameter.name, parameter.value.shape());

  CHECK(parameters[1].value.to_host() == W);
  std::filesystem::remove(path);
}

TEST_CASE("guide: several states") {
  const auto two_states = [](const auto& z, const auto& x, const auto& A) {
    const auto u = slice(z, 1, 0, 10), v = slice(z, 1, 10, 10);
    const auto next_u = tanh(linear(v, A) + x);
    const auto next_v = sigmoid(u) * x;
    return concat(1, next_u, next_v);
  };
  auto layer = deq::equilibrium<deq::Broyden<>, deq::Gdeq>(two_states);
  const auto eq = layer.solve(Tensor({4, 20}, 0), inputs(uniform({4, 10}, 1)),
                              params(uniform({10, 10}, 2, 0.3)));

  CHECK(eq.report.all_converged());
}

TEST_CASE("guide: an operation of one's own") {
  const auto g = [](const auto& z, const auto& x) { return softsign(x - 0.5F * z); };
  auto layer = deq::equilibrium<deq::Broyden<>, deq::Implicit<>>(g);
  const Tensor x({1, 1}, 1);
  const auto eq = layer.solve(Tensor({1, 1}, 0), inputs(x));
  // z = y / (1 + y) with y = 1 - z / 2, so z^2 - 5 z + 2 = 0
  const float z = eq.z.item(), slope = 1 / ((2 - 0.5F * z) * (2 - 0.5F * z));
  CHECK(z == doctest::Approx((5 - std::sqrt(17.)) / 2).epsilon(1e-5));
  // dz/dx = slope (1 - dz/dx / 2)
  CHECK(layer.gradient(eq, Tensor({1, 1}, 1)).inputs[0].item() ==
        doctest::Approx(slope / (1 + slope / 2)).epsilon(1e-4));
}

TEST_CASE("guide: MDEQ with PyTorch's weights") {
  const std::string weights = DEQ_TEST_DATA "/tiny.weights.safetensors";
  const Tensor images = uniform({2, 3, 32, 32}, 6);

  deq::Mdeq<deq::Cpu<float>> model(deq::MdeqConfig::tiny());
  model.load(deq::SafetensorsFile::open(weights));
  deq::Broyden<> solver;
  solver.stopping = {.max_iterations = 18, .relative_tolerance = 1e-3};
  deq::MdeqClassifier<deq::Cpu<float>, deq::Broyden<>, deq::Jfb> classifier(model, solver);
  const Tensor logits = classifier.logits(images);  // (2, 10)

  CHECK(logits.shape() == deq::Shape{2, 10});
  CHECK(classifier.solution().report.all_converged());
}
