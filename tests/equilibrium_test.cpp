// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <stdexcept>

#include <doctest/doctest.h>

#include <deq/deq.hpp>

namespace {

using namespace deq;
using B = Cpu<double>;
using T = Tensor<B>;

const Stopping tight{.max_iterations = 100, .relative_tolerance = 1e-14};
const auto affine_tanh = [](const auto& z, const auto& x, const auto& W, const auto& b) {
  return tanh(linear(z, W, b) + x);
};

T random_tensor(const Shape& shape, std::uint32_t stream, double scale = 1) {
  Random random(7, Purpose::user, stream);
  std::vector<double> values(static_cast<std::size_t>(shape.size()));
  for (double& v : values) v = scale * random.normal();
  return T(shape, values);
}

/// d(loss)/d(t) by central differences, in place.
T finite_difference(const T& t, const std::function<double()>& loss, double step = 1e-5) {
  T out(t.shape());
  for (Index i = 0; i < t.size(); ++i) {
    const double value = t.data()[i];
    t.data()[i] = value + step;
    const double up = loss();
    t.data()[i] = value - step;
    const double down = loss();
    t.data()[i] = value;
    out.data()[i] = (up - down) / (2 * step);
  }
  return out;
}

double relative_error(const T& a, const T& b) {
  double error = 0, scale = 0;
  for (Index i = 0; i < a.size(); ++i) {
    error += std::pow(a.data()[i] - b.data()[i], 2);
    scale += std::pow(b.data()[i], 2);
  }
  return std::sqrt(error / scale);
}

bool same_bits(const T& a, const T& b) {
  return a.shape() == b.shape() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(double)) == 0;
}

/// sum of c * z, a loss whose gradient is c.
double weighted_sum(const T& z, const T& c) {
  double sum = 0;
  for (Index i = 0; i < z.size(); ++i) sum += z.data()[i] * c.data()[i];
  return sum;
}

struct Setup {
  Index batch = 5, dim = 6;
  T W = random_tensor({6, 6}, 1, 0.25), b = random_tensor({6}, 2, 0.5),
    x = random_tensor({5, 6}, 3, 0.5), c = random_tensor({5, 6}, 4), z0 = T({5, 6}, 0.0);
};

template <class Policy>
auto tight_layer(Policy policy) {
  return equilibrium(affine_tanh, Broyden<>{.stopping = tight}, policy);
}

TEST_CASE("an equilibrium satisfies its equation, and f may name its state's shape") {
  const Setup s;
  auto layer = tight_layer(Jfb{});
  const auto eq = layer.solve(s.z0, inputs(s.x), params(s.W, s.b));
  CHECK(eq.report.all_converged());
  CHECK(relative_error(affine_tanh(eq.z, s.x, s.W, s.b), eq.z) < 1e-13);
  CHECK(relative_error(layer.apply(eq), eq.z) < 1e-13);

  const auto maps = [](const auto& z, const auto& w) { return tanh(conv2d(z, w, {.padding = 1})); };
  auto conv_layer = equilibrium<Broyden<>, Jfb>(maps);
  const T w = random_tensor({2, 2, 3, 3}, 5, 0.1);
  const auto picture = conv_layer.solve(random_tensor({3, 2, 5, 5}, 6), no_inputs<T>(), params(w));
  CHECK(picture.z.shape() == Shape{3, 2, 5, 5});
  CHECK(picture.report.all_converged());
}

TEST_CASE_TEMPLATE("case G: the gradients of Implicit and Exact are those of finite differences",
                   Policy, Exact, Implicit<>, Implicit<Gmres>, Implicit<Anderson>,
                   Implicit<FixedPoint>) {
  const Setup s;
  Policy policy;
  if constexpr (requires { policy.solver; }) policy.solver.stopping = tight;
  auto layer = tight_layer(policy);
  const auto solve = [&] { return layer.solve(s.z0, inputs(s.x), params(s.W, s.b)); };
  const auto loss = [&] { return weighted_sum(solve().z, s.c); };
  const auto g = layer.gradient(solve(), s.c);
  CHECK(relative_error(g.inputs[0], finite_difference(s.x, loss)) < 1e-6);
  CHECK(relative_error(g.params[0], finite_difference(s.W, loss)) < 1e-6);
  CHECK(relative_error(g.params[1], finite_difference(s.b, loss)) < 1e-6);
}

TEST_CASE("Unrolled differentiates n applications exactly, and hands on the n-th iterate") {
  const Setup s;
  const T z0 = random_tensor({5, 6}, 9);
  for (const int n : {1, 3, 10}) {
    auto layer = equilibrium(affine_tanh, Broyden<>{}, Unrolled{n});
    const auto solve = [&] { return layer.solve(z0, inputs(s.x), params(s.W, s.b)); };
    T by_hand = z0;
    for (int k = 0; k < n; ++k) by_hand = affine_tanh(by_hand, s.x, s.W, s.b);
    const auto eq = solve();
    CHECK(relative_error(eq.z, by_hand) < 1e-14);
    CHECK(eq.report.samples[2].evaluations == n);
    const auto loss = [&] { return weighted_sum(solve().z, s.c); };
    const auto g = layer.gradient(eq, s.c);
    CHECK(relative_error(g.inputs[0], finite_difference(s.x, loss)) < 1e-6);
    CHECK(relative_error(g.params[0], finite_difference(s.W, loss)) < 1e-6);
    CHECK(relative_error(g.params[1], finite_difference(s.b, loss)) < 1e-6);
  }
}

TEST_CASE_TEMPLATE("case E: parameter gradients are the VJP of f at z* of the policy's adjoint",
                   Policy, Exact, Implicit<>, Jfb, Npg, Gdeq) {
  const Setup s;
  auto layer = tight_layer(Policy{});
  const auto eq = layer.solve(s.z0, inputs(s.x), params(s.W, s.b));
  const auto g = layer.gradient(eq, s.c);

  Tape<B> tape;
  const std::vector<Var<B>> wrt{tape.input(s.x), tape.input(s.W), tape.input(s.b)};
  const Var<B> y = affine_tanh(Var<B>(eq.z), wrt[0], wrt[1], wrt[2]);
  const std::vector<T> expected{T(s.x.shape()), T(s.W.shape()), T(s.b.shape())};
  tape.vjp(y, g.adjoint, wrt, expected);
  CHECK(relative_error(g.inputs[0], expected[0]) < 1e-13);
  CHECK(relative_error(g.params[0], expected[1]) < 1e-13);
  CHECK(relative_error(g.params[1], expected[2]) < 1e-13);
}

TEST_CASE("the certificate measures each policy, sample by sample") {
  const Setup s;
  const auto residuals = [&](auto policy) {
    auto layer = tight_layer(policy);
    layer.certified = true;
    const auto eq = layer.solve(s.z0, inputs(s.x), params(s.W, s.b));
    const auto g = layer.gradient(eq, s.c);
    // By hand: h - w + J^T w, J^T w from a tape.
    Tape<B> tape;
    const Var<B> z = tape.input(eq.z);
    const Var<B> y = affine_tanh(z, s.x, s.W, s.b);
    const T jw(eq.z.shape());
    tape.vjp(y, g.adjoint, std::span(&z, 1), std::span(&jw, 1));
    for (Index n = 0; n < 5; ++n) {
      double r = 0, h = 0;
      for (Index i = n * 6; i < n * 6 + 6; ++i) {
        r += std::pow(s.c.data()[i] - g.adjoint.data()[i] + jw.data()[i], 2);
        h += std::pow(s.c.data()[i], 2);
      }
      const double reported = g.report.samples[static_cast<std::size_t>(n)].residual;
      CHECK(std::abs(reported - std::sqrt(r / h)) < 1e-12);
    }
    return g.report.worst_residual();
  };
  CHECK(residuals(Jfb{}) > 1e-2);
  CHECK(residuals(Exact{}) < 1e-14);
  CHECK(residuals(Gdeq{.refinements = 4}) < residuals(Gdeq{}));
}

TEST_CASE("results have the same bits for any number of threads, and repeat without memory") {
  const Setup s;
  const T z0({64, 6}, 0.0), x = random_tensor({64, 6}, 11), c = random_tensor({64, 6}, 12);
  auto layer = tight_layer(Gdeq{});
  layer.schedule.block = 5;
  const int threads = num_threads();
  set_num_threads(1);
  const auto one = layer.solve(z0, inputs(x), params(s.W, s.b));
  const auto g1 = layer.gradient(one, c);
  for (const int n : {2, 3, 7}) {
    set_num_threads(n);
    const auto many = layer.solve(z0, inputs(x), params(s.W, s.b));
    const auto g = layer.gradient(many, c);
    CHECK(same_bits(one.z, many.z));
    CHECK(same_bits(g1.adjoint, g.adjoint));
    CHECK(same_bits(g1.inputs[0], g.inputs[0]));
    CHECK(same_bits(g1.params[0], g.params[0]));
    CHECK(same_bits(g1.params[1], g.params[1]));
  }

  set_num_threads(1);
  auto eq = layer.solve(z0, inputs(x), params(s.W, s.b));
  auto g = layer.gradient(eq, c);
  const auto repeat = [&](int times) {
    for (int i = 0; i < times; ++i) {
      layer.solve(z0, inputs(x), params(s.W, s.b), eq);
      layer.gradient(eq, c, g);
    }
    return HostPool::instance().system_requests();
  };
  const auto requests = repeat(1);
  CHECK(repeat(5) == requests);
  set_num_threads(threads);
}

TEST_CASE("solve_and_apply is solve and apply, and saves an evaluation where it can") {
  const Setup s;
  const int threads = num_threads();
  set_num_threads(1);
  int evaluations = 0;
  const auto f = [&](const auto& z, const auto& x, const auto& W, const auto& b) {
    ++evaluations;
    return affine_tanh(z, x, W, b);
  };
  // Evaluations of f that apply costs, and those that solve_and_apply costs beyond solve.
  const auto costs = [&](auto solver, Index block) {
    auto layer = equilibrium(f, solver, Jfb{});
    layer.schedule.block = block;
    const auto counted = [&](auto work) {
      const int before = evaluations;
      work();
      return evaluations - before;
    };
    auto eq = layer.solve(s.z0, inputs(s.x), params(s.W, s.b));
    T apart, at_once;
    const int solve = counted([&] { layer.solve(s.z0, inputs(s.x), params(s.W, s.b), eq); });
    const int apply = counted([&] { apart = layer.apply(eq); });
    const T z = eq.z.clone();
    const int both =
        counted([&] { at_once = layer.solve_and_apply(s.z0, inputs(s.x), params(s.W, s.b), eq); });
    CHECK(same_bits(at_once, apart));
    CHECK(same_bits(eq.z, z));
    return std::array{apply, both - solve};
  };
  using Costs = std::array<int, 2>;
  const Stopping budget{.max_iterations = 4, .relative_tolerance = 0};
  const Stopping tolerance{.relative_tolerance = 1e-8};
  const Index n = s.z0.extent(0);
  CHECK(costs(FixedPoint{budget}, n) == Costs{1, 0});
  CHECK(costs(Anderson{budget}, n) == Costs{1, 0});
  CHECK(costs(Broyden<StepsOnly>{budget}, 1) == Costs{static_cast<int>(n), 0});
  CHECK(costs(Broyden<>{tolerance}, 1) == Costs{static_cast<int>(n), 0});
  // Some have left before the last evaluation; a line search evaluates f elsewhere as well.
  CHECK(costs(Broyden<>{tolerance}, n) == Costs{1, 1});
  CHECK(costs(Broyden<Pairs, Armijo>{budget}, n) == Costs{1, 1});
  // The last iterate is not the best one.
  const auto worse = [](const auto& z) { return scale(square(z), 1.5); };
  auto layer =
      equilibrium(worse, FixedPoint{{.max_iterations = 3, .relative_tolerance = 0}}, Jfb{});
  const T start({1, 2}, 0.9);
  auto eq = layer.solve(start);
  const T applied = layer.solve_and_apply(start, no_inputs<T>(), no_params<T>(), eq);
  CHECK(eq.report.samples[0].best_iteration < eq.report.samples[0].iterations);
  CHECK(same_bits(applied, layer.apply(eq)));
  set_num_threads(threads);
}

TEST_CASE("a solve that f ends by an exception leaves no inverse, and the layer as it was") {
  const Setup s;
  bool fails = false;
  const auto f = [&](const auto& z, const auto& x, const auto& W, const auto& b) {
    if (fails) throw std::runtime_error("f does not want to");
    return affine_tanh(z, x, W, b);
  };
  auto layer = equilibrium(f, Broyden<>{.stopping = tight}, Gdeq{});
  const T x = s.x.clone();
  const auto solve = [&](auto& eq) { layer.solve(s.z0, inputs(x), params(s.W, s.b), eq); };
  {
    auto eq = layer.solve(s.z0, inputs(x), params(s.W, s.b));
    const auto g = layer.gradient(eq, s.c);
    fails = true;
    CHECK_THROWS_AS(solve(eq), std::runtime_error);
    fails = false;
    CHECK(eq.report.count(SolveStatus::converged) == 0);
    CHECK_THROWS_AS(layer.gradient(eq, s.c), InvalidArgument);
    solve(eq);
    CHECK(same_bits(layer.gradient(eq, s.c).params[0], g.params[0]));
    fails = true;
    CHECK_THROWS_AS(solve(eq), std::runtime_error);
  }
  CHECK(x.unique());
}

TEST_CASE("a layer keeps no tensor of a pass that is over") {
  const Setup s;
  auto layer = tight_layer(Gdeq{});
  const T x = s.x.clone(), W = s.W.clone();
  const auto g = [&] {
    const auto eq = layer.solve(s.z0, inputs(x), params(W, s.b));
    return layer.gradient(eq, s.c);
  }();
  for (const T* t : {&x, &W, &g.inputs[0], &g.params[0]}) CHECK(t->unique());
}

TEST_CASE("case F: a sample does not notice its neighbours") {
  // Element-wise maps compute a column the same in any batch; one sample diverges, one is NaN.
  const auto f = [](const auto& z, const auto& x, const auto& gain) {
    return sin(z * gain * x) + x;
  };
  const Index n = 8, dim = 6;
  const T z0({n, dim}, 0.0), gain = random_tensor({dim}, 21, 0.4);
  T x = random_tensor({n, dim}, 22, 0.7);
  for (Index i = 0; i < dim; ++i) x.data()[3 * dim + i] = std::nan("");
  for (Index i = 0; i < dim; ++i) x.data()[5 * dim + i] = 400;
  auto layer = equilibrium(f, Broyden<>{.stopping = {.max_iterations = 25}}, Gdeq{});
  layer.schedule.block = n;
  const auto together = layer.solve(z0, inputs(x), params(gain));
  const T h({n, dim}, 1.0);
  const auto g = layer.gradient(together, h);
  CHECK(together.report.samples[3].status == SolveStatus::non_finite);
  for (Index s = 0; s < n; ++s) {
    if (s == 3) continue;
    const auto alone = layer.solve(z0.rows(s, 1), inputs(x.rows(s, 1)), params(gain));
    const auto ga = layer.gradient(alone, h.rows(s, 1));
    CHECK(same_bits(alone.z, together.z.rows(s, 1)));
    CHECK(same_bits(ga.adjoint, g.adjoint.rows(s, 1)));
    CHECK(same_bits(ga.inputs[0], g.inputs[0].rows(s, 1)));
    const auto& r = together.report.samples[static_cast<std::size_t>(s)];
    CHECK(alone.report.samples[0].iterations == r.iterations);
    CHECK(alone.report.samples[0].status == r.status);
  }
}

TEST_CASE("small problems with known answers: D1, D2, B1, B2") {
  Implicit<> implicit;
  implicit.solver.stopping = tight;
  const auto scaled = [](const auto& z, const auto& w, const auto& b) { return z * w + b; };
  auto layer = equilibrium(scaled, Broyden<>{.stopping = tight}, implicit);

  // D1: f = -2 z + 1, not a contraction; z = 1/3, dL/dw = 1/9 and dL/db = 1/3 an entry.
  const T ones({2, 3}, 1.0), w({2, 3}, -2.0), one({2, 3}, 1.0);
  const auto d1 = layer.solve(T({1, 2, 3}, 1.0), no_inputs<T>(), params(w, one));
  const auto gd1 = layer.gradient(d1, T({1, 2, 3}, 1.0));
  for (Index i = 0; i < 6; ++i) {
    CHECK(d1.z.data()[i] == doctest::Approx(1.0 / 3).epsilon(1e-12));
    CHECK(gd1.params[0].data()[i] == doctest::Approx(1.0 / 9).epsilon(1e-10));
    CHECK(gd1.params[1].data()[i] == doctest::Approx(1.0 / 3).epsilon(1e-10));
  }
  // D2: z -> z 1 1^T + 1 for two rows of three; z = -1/2, weight gradient 1/2 everywhere.
  const auto rows = [](const auto& z, const auto& A, const auto& b) { return matmul(z, A) + b; };
  auto row_layer = equilibrium(rows, Broyden<>{.stopping = tight}, implicit);
  const auto d2 =
      row_layer.solve(T({2, 3}, 2.0), no_inputs<T>(), params(T({3, 3}, 1.0), T({3}, 1.0)));
  const auto gd2 = row_layer.gradient(d2, T({2, 3}, 1.0));
  for (Index i = 0; i < 6; ++i) CHECK(d2.z.data()[i] == doctest::Approx(-0.5).epsilon(1e-10));
  for (Index i = 0; i < 9; ++i)
    CHECK(gd2.params[0].data()[i] == doctest::Approx(0.5).epsilon(1e-8));
  // B1: f = z / 2 + 1, loss z^2: z = 2, dL/da = 16, dL/db = 8. And case B: Gdeq is exact here.
  const auto b1 = [&](auto policy) {
    auto scalar = equilibrium(scaled, Broyden<>{.stopping = tight}, policy);
    const auto eq = scalar.solve(T({1, 1}, 0.0), no_inputs<T>(), params(T({1}, 0.5), T({1}, 1.0)));
    const auto g = scalar.gradient(eq, T({1, 1}, {2 * eq.z.item()}));
    return std::array<double, 3>{eq.z.item(), g.params[0].item(), g.params[1].item()};
  };
  for (const auto& result : {b1(implicit), b1(Gdeq{}), b1(Exact{})}) {
    CHECK(result[0] == doctest::Approx(2).epsilon(1e-12));
    CHECK(result[1] == doctest::Approx(16).epsilon(1e-12));
    CHECK(result[2] == doctest::Approx(8).epsilon(1e-12));
  }
  CHECK(b1(Jfb{})[2] == doctest::Approx(4).epsilon(1e-12));
  CHECK(b1(Npg{})[2] == doctest::Approx(4 * 1.525390625).epsilon(1e-12));
  // B2: A = [0 1/4; 1/4 0], b = (1, 2): z = (1.6, 2.4).
  const auto b2 = row_layer.solve(T({1, 2}, 0.0), no_inputs<T>(),
                                  params(T({2, 2}, {0, .25, .25, 0}), T({2}, {1, 2})));
  CHECK(b2.z.data()[0] == doctest::Approx(1.6).epsilon(1e-12));
  CHECK(b2.z.data()[1] == doctest::Approx(2.4).epsilon(1e-12));
}

TEST_CASE("an equilibrium is one node of an outer tape") {
  const Setup s;
  Implicit<> implicit;
  implicit.solver.stopping = tight;
  auto layer = tight_layer(implicit);
  using Solution = decltype(layer)::Solution<B, 1, 2>;
  for (const Output output : {Output::state, Output::applied}) {
    Solution solution;
    Tape<B> tape;
    // A network: x = sigmoid(u), z* = f(z*, x), loss = mean(z*^2).
    const auto run = [&] {
      tape.clear();
      const std::vector<Var<B>> wrt{tape.input(s.x), tape.input(s.W), tape.input(s.b)};
      const Var<B> z = record_equilibrium(layer, s.z0, inputs(sigmoid(wrt[0])),
                                          params(wrt[1], wrt[2]), output, solution);
      const Var<B> loss = mean(square(z));
      std::vector<T> grads{T(s.x.shape()), T(s.W.shape()), T(s.b.shape())};
      tape.vjp(loss, T(Shape{}, 1.0), wrt, grads);
      return std::pair(loss.value().item(), grads);
    };
    const auto loss = [&] { return run().first; };
    const auto grads = run().second;
    CHECK(solution.report.all_converged());
    CHECK(relative_error(grads[0], finite_difference(s.x, loss)) < 1e-6);
    CHECK(relative_error(grads[1], finite_difference(s.W, loss)) < 1e-6);
    CHECK(relative_error(grads[2], finite_difference(s.b, loss)) < 1e-6);
  }
}

TEST_CASE("what a recorded equilibrium is given as a tensor is a constant") {
  const Setup s;
  auto layer = tight_layer(Exact{});
  decltype(layer)::Solution<B, 1, 2> solution;
  const auto gradient = [&](const auto& x, const auto& W, const auto& b, const Var<B>& wrt) {
    const Var<B> z =
        record_equilibrium(layer, s.z0, inputs(x), params(W, b), Output::state, solution);
    const T g(wrt.shape());
    wrt.tape()->vjp(z, s.c, std::vector<Var<B>>{wrt}, std::vector<T>{g});
    return g;
  };
  Tape<B> tape;
  const Var<B> x = tape.input(s.x), W = tape.input(s.W), b = tape.input(s.b);
  CHECK(same_bits(gradient(s.x, W, b, W), gradient(x, W, b, W)));
  CHECK(same_bits(gradient(x, s.W, s.b, x), gradient(x, W, b, x)));
}

TEST_CASE("a warm start needs no lists that are empty") {
  auto layer = equilibrium<Broyden<>, Jfb>([](const auto& z, const auto&... more) {
    if constexpr (sizeof...(more) == 0)
      return cos(z);
    else
      return cos((z + ... + more));
  });
  const T z0({2, 3}, 0.0), x({2, 3}, 0.1), p({3}, 0.2);
  const auto restarts_at_once = [&](auto... arguments) {
    auto eq = layer.solve(z0, arguments...);
    const bool moved = eq.report.samples[0].iterations > 0;
    layer.solve(eq.z, arguments..., eq);
    return moved && eq.report.all_converged() && eq.report.samples[0].iterations == 0;
  };
  CHECK(restarts_at_once());
  CHECK(restarts_at_once(inputs(x)));
  CHECK(restarts_at_once(params(p)));
  CHECK(restarts_at_once(inputs(x), params(p)));
}

TEST_CASE("a solution that is solved again is not the one that a tape has recorded") {
  const Setup s;
  auto layer = tight_layer(Exact{});
  using Solution = decltype(layer)::Solution<B, 1, 2>;
  Solution one, other;
  Tape<B> tape;
  const std::vector<Var<B>> x{tape.input(s.x), tape.input(s.c)};
  const auto record = [&](const Var<B>& of, Solution& into) {
    return record_equilibrium(layer, s.z0, inputs(of), params(Var<B>(s.W), Var<B>(s.b)),
                              Output::state, into);
  };
  const T h = random_tensor(s.z0.shape(), 41);
  std::vector<T> grads{T(s.x.shape()), T(s.x.shape())};
  const Var<B> both = record(x[0], one) + record(x[1], other);
  tape.vjp(both, h, x, grads);
  CHECK(same_bits(grads[0], layer.gradient(one, h).inputs[0]));
  CHECK(same_bits(grads[1], layer.gradient(other, h).inputs[0]));

  const Var<B> again = record(x[0], other);  // and `both` has lost a part
  CHECK_THROWS_WITH_AS(tape.vjp(both, h, x, grads), doctest::Contains("a solution of its own"),
                       InvalidArgument);
  tape.vjp(again, h, x, grads);
  const auto of_one = [&] { return layer.solve(s.z0, inputs(s.x), params(s.W, s.b)); };
  other = of_one();  // as many solves as before, but not the same
  CHECK_THROWS_AS(tape.vjp(again, h, x, grads), InvalidArgument);
  layer.gradient(other, h);  // which knows of no tape
}

TEST_CASE("a gradient that nobody wants is not computed, the others are the same") {
  const Setup s;
  auto layer = tight_layer(Exact{});
  const auto eq = layer.solve(s.z0, inputs(s.x), params(s.W, s.b));
  const auto all = layer.gradient(eq, s.c);
  EquilibriumGradients<B> some;
  some.inputs = {T()};
  some.params = {T(), T(s.b.shape())};
  layer.gradient(eq, s.c, some);
  CHECK(same_bits(some.params[1], all.params[1]));
  CHECK(!some.inputs[0]);
}

TEST_CASE("an inverse outlives its solve while somebody shares it") {
  const Setup s;
  auto layer = tight_layer(Gdeq{});
  auto eq = layer.solve(s.z0, inputs(s.x), params(s.W, s.b));
  const auto kept = eq.inverse(0);
  const auto before = to_dense<B>(*kept, 0);
  layer.solve(random_tensor({5, 6}, 31), inputs(s.x), params(s.W, s.b), eq);
  CHECK(to_dense<B>(*kept, 0) == before);
  CHECK(eq.inverse(0) != kept);
  CHECK(to_dense<B>(*eq.inverse(0), 0) != before);
}

TEST_CASE("the last gradient is the gradient, and gives the inverse back") {
  const Setup s;
  for (const int refinements : {0, 2}) {
    auto layer = tight_layer(Gdeq{.refinements = refinements});
    layer.schedule.block = 2;  // three of them
    auto eq = layer.solve(s.z0, inputs(s.x), params(s.W, s.b));
    const auto expected = layer.gradient(eq, s.c);
    EquilibriumGradients<B> last;
    last.inputs = {T(s.x.shape())};
    last.params = {T(s.W.shape()), T(s.b.shape())};
    layer.gradient_and_clear(eq, s.c, std::span<const T>(last.inputs),
                             std::span<const T>(last.params), last.adjoint, last.report);
    for (Index b = 0; b < 3; ++b) CHECK(eq.inverse(b) == nullptr);
    CHECK(same_bits(last.adjoint, expected.adjoint));
    CHECK(same_bits(last.inputs[0], expected.inputs[0]));
    for (std::size_t i = 0; i < 2; ++i) CHECK(same_bits(last.params[i], expected.params[i]));
    CHECK_THROWS_AS(layer.gradient(eq, s.c), InvalidArgument);

    // On a tape that is the backward pass that clears it.
    Tape<B> tape;
    const std::vector<Var<B>> wrt{tape.input(s.x), tape.input(s.W), tape.input(s.b)};
    const Var<B> z =
        record_equilibrium(layer, s.z0, inputs(wrt[0]), params(wrt[1], wrt[2]), Output::state, eq);
    std::vector<T> first{T(s.x.shape()), T(s.W.shape()), T(s.b.shape())}, second = first;
    for (T& t : second) t = T(t.shape());
    tape.vjp(z, s.c, wrt, first);
    CHECK(eq.inverse(0) != nullptr);
    tape.vjp_and_clear(z, s.c, wrt, second);
    CHECK(eq.inverse(0) == nullptr);
    CHECK(same_bits(first[0], expected.inputs[0]));
    for (std::size_t i = 0; i < 3; ++i) CHECK(same_bits(first[i], second[i]));
  }
}

TEST_CASE("no samples: no iterations, and a gradient of zero") {
  const Setup s;
  auto layer = tight_layer(Gdeq{});
  const auto eq = layer.solve(T({0, 6}), inputs(T({0, 6})), params(s.W, s.b));
  CHECK(eq.report.samples.empty());
  const auto g = layer.gradient(eq, T({0, 6}));
  CHECK(g.inputs[0].shape() == Shape{0, 6});
  for (const T& p : g.params)
    for (const double x : p.to_host()) CHECK(x == 0);
}

TEST_CASE("misuse throws and says what came") {
  const Setup s;
  auto layer = tight_layer(Jfb{});
  CHECK_THROWS_WITH_AS(layer.solve(s.z0, inputs(T({4, 6}, 0.0)), params(s.W, s.b)),
                       doctest::Contains("an input has shape (4, 6)"), ShapeError);
  const auto eq = layer.solve(s.z0, inputs(s.x), params(s.W, s.b));
  CHECK_THROWS_WITH_AS(layer.gradient(eq, T({5, 5}, 0.0)), doctest::Contains("(5, 5)"), ShapeError);
  auto shrinking = equilibrium<Broyden<>, Jfb>([](const auto& z) { return slice(z, 1, 0, 2); });
  CHECK_THROWS_WITH_AS(shrinking.solve(s.z0), doctest::Contains("it returned (5, 2)"), ShapeError);
  auto permuting = equilibrium<Broyden<>, Jfb>([](const auto& z) {
    return reshape(z, {z.extent(0), 3, 2});
  });
  CHECK_THROWS_WITH_AS(permuting.solve(T({5, 2, 3}, 0.0)),
                       doctest::Contains("it returned (5, 3, 2)"), ShapeError);

  // Rows that f has from elsewhere are not those of the samples that are left.
  T captured = s.x.clone();
  std::fill_n(captured.data(), s.dim, 0.0);  // solved from the start
  auto capturing = equilibrium<Broyden<>, Jfb>([&](const auto& z) { return 0.5 * z + captured; });
  CHECK_THROWS_WITH_AS(capturing.solve(s.z0),
                       doctest::Contains("f was called for 4 of 5 samples: whatever has a row a "
                                         "sample belongs into inputs(...)"),
                       ShapeError);

  decltype(layer)::Solution<B, 1, 2> unsolved;
  CHECK_THROWS_WITH_AS(layer.gradient(unsolved, T()), doctest::Contains("nothing has been solved"),
                       InvalidArgument);
  auto unrolled = equilibrium<Broyden<>, Unrolled>([](const auto& z) { return cos(z); });
  unrolled.certified = true;
  CHECK_THROWS_WITH_AS(unrolled.gradient(unrolled.solve(s.z0), s.c),
                       doctest::Contains("no adjoint that could be certified"), InvalidArgument);

  // Memory that is too small, or of another shape.
  EquilibriumGradients<B> g;
  g.inputs = {T({2, 6})};
  g.params = {T({6, 6}), T(Shape{6})};
  CHECK_THROWS_WITH_AS(layer.gradient(eq, s.c, g),
                       doctest::Contains("of input 0 has shape (2, 6), the input has (5, 6)"),
                       ShapeError);
  g.inputs = {T()};
  g.params[1] = T(Shape{5});
  CHECK_THROWS_WITH_AS(layer.gradient(eq, s.c, g),
                       doctest::Contains("of parameter 1 has shape (5), the parameter has (6)"),
                       ShapeError);

  auto moved = std::move(layer);
  CHECK_THROWS_WITH_AS(layer.solve(s.z0, inputs(s.x), params(s.W, s.b)),
                       doctest::Contains("moved from"), InvalidArgument);
  layer = std::move(moved);
  layer.solver.stopping.relative_tolerance = -1;
  CHECK_THROWS_WITH_AS(layer.solve(s.z0, inputs(s.x), params(s.W, s.b)),
                       doctest::Contains("relative_tolerance must be >= 0, got -1"),
                       InvalidArgument);
}

}  // namespace
