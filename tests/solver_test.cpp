// SPDX-License-Identifier: MIT
// What all solvers share: how a solve ends, what is returned, what it says; and that a sample's
// result is its own.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/cpu/cpu.hpp>
#include <deq/core/host_pool.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/broyden.hpp>
#include <deq/solver/fixed_point.hpp>
#include <deq/solver/gmres.hpp>

#include "support/maps.hpp"

using namespace deq;
using namespace deq_test;

namespace {

using B = Cpu<double>;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

template <class Function>
void for_each_solver(Stopping stopping, Function function) {
  function(FixedPoint{.stopping = stopping});
  function(Broyden<>{.stopping = stopping});
  function(Broyden<StepsOnly>{.stopping = stopping});
  function(Anderson{.stopping = stopping});
  if (stopping.scope == Scope::sample) function(Broyden<Pairs, Armijo>{.stopping = stopping});
}

template <class Exception = InvalidArgument, class Function>
std::string message_of(Function function) {
  try {
    function();
  } catch (const Exception& error) {
    return error.what();
  }
  return "";
}
bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("An exact start converges with one evaluation and no step") {
  for_each_solver({}, [](const auto& solver) {
    auto f = column_map<B>(2, [](Index, const double* z, double* out) {
      out[0] = 0.5 * z[0] + 1;
      out[1] = -3 * z[1] + 4;
    });
    const auto solved = solve(solver, f, {2, 1});
    CHECK(solved.sample().status == SolveStatus::converged);
    CHECK(solved.sample().iterations == 0);
    CHECK(solved.sample().best_iteration == 0);
    CHECK(solved.sample().evaluations == 1);
    CHECK(f.evaluations == 1);
    CHECK(solved.z == std::vector<double>{2, 1});
    CHECK(solved.sample().absolute == 0);
  });
}

TEST_CASE("Convergence is judged by the relative, and by the absolute residual") {
  for_each_solver({.relative_tolerance = 1e-8}, [](const auto& solver) {
    auto f = case_a<B>();
    const auto solved = solve(solver, f, std::vector<double>(3));
    CHECK(solved.sample().status == SolveStatus::converged);
    CHECK(solved.sample().relative <= 1e-8);
    CHECK(solved.sample().evaluations == f.evaluations);
    CHECK(relative_error(solved.z, CaseA::solution) < 1e-7);
    CHECK(name(solved.sample().status) == "converged");
  });
  for_each_solver({.relative_tolerance = 0, .absolute_tolerance = 1e-8}, [](const auto& solver) {
    auto f = case_a<B>();
    const auto solved = solve(solver, f, std::vector<double>(3));
    CHECK(solved.sample().status == SolveStatus::converged);
    CHECK(solved.sample().absolute <= 1e-8);
  });
}

TEST_CASE("A fixed point at 0, where relative residuals do not fall, is found and returned") {
  // J6 of jaxopt, and S2 of scipy: f -> 0 as fast as f - z does.
  for_each_solver({.relative_tolerance = 0, .absolute_tolerance = 1e-9}, [](const auto& solver) {
    auto f = column_map<B>(2, [](Index, const double* z, double* out) {
      out[0] = 0.05 * z[0];
      out[1] = 0.2 * z[1];
    });
    const auto solved = solve(solver, f, {1, -0.5});
    CHECK(solved.sample().status == SolveStatus::converged);
    CHECK(solved.sample().absolute <= 1e-9);
    CHECK(std::hypot(solved.z[0], solved.z[1]) < 2e-9);
  });
  auto slow = column_map<B>(1, [](Index, const double* z, double* out) { out[0] = 0.9 * z[0]; });
  const auto solved = solve(
      FixedPoint{
          .stopping = {.max_iterations = 300, .relative_tolerance = 0, .absolute_tolerance = 1e-9}},
      slow, {1});
  CHECK(solved.sample().status == SolveStatus::converged);  // and not stalled
  CHECK(std::abs(solved.z[0]) < 1e-8);
}

TEST_CASE("A spent budget returns the best iterate and its residuals") {
  // Picard on a rotation that contracts for 4 steps and then is thrown far away.
  int calls = 0;
  auto f = column_map<B>(1, [&](Index, const double* z, double* out) {
    out[0] = calls++ < 4 ? 0.5 * z[0] + 1 : 0.5 * z[0] + 5;
  });
  const auto solved = solve(FixedPoint{.stopping = {.max_iterations = 6, .trace = true}}, f, {0});
  const SampleReport& sample = solved.sample();
  CHECK(sample.status == SolveStatus::budget_exhausted);
  CHECK(sample.iterations == 6);
  CHECK(sample.evaluations == 7);
  CHECK(sample.best_iteration == 3);
  CHECK(solved.z[0] == 1.75);
  CHECK(sample.absolute == 0.125);
  CHECK(sample.relative == doctest::Approx(0.125 / 1.875));
  REQUIRE(solved.report.relative_trace[0].size() == 6);
  CHECK(solved.report.absolute_trace[0][2] == 0.125);
  CHECK(solved.report.relative_trace[0][2] == sample.relative);
  CHECK(solved.report.count(SolveStatus::budget_exhausted) == 1);
  CHECK_FALSE(solved.report.all_converged());
  CHECK(solved.report.mean_iterations() == 6);
  CHECK(solved.report.max_iterations() == 6);
  CHECK(solved.report.worst_relative() == sample.relative);
  CHECK(solved.report.mean_relative() == sample.relative);
}

TEST_CASE("No iterations allowed: the start is judged and returned") {
  for_each_solver({.max_iterations = 0}, [](const auto& solver) {
    auto f = case_a<B>();
    const auto solved = solve(solver, f, {0.1, 0.2, 0.3});
    CHECK(solved.sample().status == SolveStatus::budget_exhausted);
    CHECK(solved.sample().iterations == 0);
    CHECK(f.evaluations == 1);
    CHECK(solved.z == std::vector<double>{0.1, 0.2, 0.3});
  });
  DenseAffine<B> affine({0.5}, {1});
  const auto solved = solve(Gmres{.stopping = {.max_iterations = 0}}, affine, {7});
  CHECK(solved.sample().status == SolveStatus::budget_exhausted);
  CHECK(solved.z[0] == 7);
}

TEST_CASE("A residual that has stopped falling is a stall") {
  // Picard on a rotation keeps its distance from the fixed point.
  auto f = column_map<B>(2, [](Index, const double* z, double* out) {
    out[0] = 0.6 * z[0] - 0.8 * z[1];
    out[1] = 0.8 * z[0] + 0.6 * z[1];
  });
  const auto solved = solve(FixedPoint{.stopping = {.max_iterations = 200}}, f, {1, 0});
  CHECK(solved.sample().status == SolveStatus::stalled);
  CHECK(solved.sample().iterations == 30);
  const auto patient =
      solve(FixedPoint{.stopping = {.max_iterations = 200, .stall_window = 0}}, f, {1, 0});
  CHECK(patient.sample().status == SolveStatus::budget_exhausted);
  const auto level =
      solve(FixedPoint{.stopping = {.max_iterations = 200, .stall_window = 10, .stall_level = 0.1}},
            f, {1, 0});
  CHECK(level.sample().status == SolveStatus::budget_exhausted);
}

TEST_CASE("A stall is found in a window of the residuals, whether all of them are kept or not") {
  // A residual that halves in each of 15 steps, then in one of 5.
  for (const int window : {1, 4, 7, 20})
    for (const double ratio : {1.0, 1.3, 2.5, 1e3}) {
      const Stopping stopping{.max_iterations = 60,
                              .relative_tolerance = 1e-12,
                              .stall_window = window,
                              .stall_ratio = ratio};
      Stopping traced = stopping;
      traced.trace = true;
      const auto run = [&](const Stopping& rule) {
        int calls = 0;
        auto f = column_map<B>(1, [&](Index, const double* z, double* out) {
          const int k = calls++;
          out[0] = z[0] + (k < 15 ? std::ldexp(1, -k) : std::ldexp(1 + 0.1 * (k % 5), -15 - k / 5));
        });
        return solve(FixedPoint{.stopping = rule}, f, {1});
      };
      const auto in_ring = run(stopping), in_trace = run(traced);
      CAPTURE(window);
      CAPTURE(ratio);
      CHECK(in_ring.sample().status == in_trace.sample().status);
      CHECK(in_ring.sample().iterations == in_trace.sample().iterations);
      // What the rule says, applied to the trace.
      const auto& relative = in_trace.report.relative_trace[0];
      const auto& absolute = in_trace.report.absolute_trace[0];
      const auto flat = [&](const std::vector<double>& all, std::size_t end) {
        const auto last = all.begin() + static_cast<Index>(end);
        const auto [low, high] = std::minmax_element(last - window, last);
        return *high < ratio * *low;
      };
      std::size_t expected = 60;
      for (std::size_t k = static_cast<std::size_t>(window); k <= relative.size() && expected == 60;
           ++k)
        if (flat(relative, k) && flat(absolute, k)) expected = k;
      CHECK(in_ring.sample().iterations == static_cast<int>(expected));
    }
}

TEST_CASE("A budget that is not used costs no memory") {
  const TanhFamily family(4, 64, 0.5, 5);
  for_each_solver({.max_iterations = 1'000'000}, [&](auto solver) {
    using Solver = std::remove_cvref_t<decltype(solver)>;
    const auto bytes_of = [&] {
      auto f = column_map<B>(
          4, [&](Index s, const double* z, double* out) { family.evaluate(s, z, out); });
      typename Solver::template Workspace<B> ws;
      HostPool::instance().trim();
      const std::size_t before = HostPool::instance().bytes();
      CHECK(solve(solver, f, std::vector<double>(64 * 4), ws).report.all_converged());
      return HostPool::instance().bytes() - before;
    };
    CHECK(bytes_of() < 1'000'000);
  });
}

TEST_CASE("A memory that the budget cannot fill is not there, and changes no bit") {
  const TanhFamily family(20, 3, 0.9, 6);
  const auto compare = [&](auto roomy) {
    using Solver = decltype(roomy);
    roomy.stopping = {.max_iterations = 6, .relative_tolerance = 0};
    Solver exact = roomy;
    exact.memory = 6;
    roomy.memory = 1'000'000'000'000;
    auto f = column_map<B>(
        20, [&](Index s, const double* z, double* out) { family.evaluate(s, z, out); });
    typename Solver::template Workspace<B> a, b;
    const auto x = solve<KeepInverse::yes>(roomy, f, std::vector<double>(3 * 20), a),
               y = solve<KeepInverse::yes>(exact, f, std::vector<double>(3 * 20), b);
    CHECK(x.z == y.z);
    for (Index s = 0; s < 3; ++s) {
      CHECK(a.inverse.rank(s) == 6);
      CHECK(to_dense<B>(a.inverse, s) == to_dense<B>(b.inverse, s));
    }
  };
  for (const WhenFull when_full :
       {WhenFull::discard_oldest, WhenFull::discard_oldest_first, WhenFull::restart})
    compare(Broyden<>{.when_full = when_full});
  compare(Broyden<StepsOnly>{});
  DenseAffine<B> affine(Noise(7).vector(400, 0.1), Noise(8).vector(20));
  const Stopping six{.max_iterations = 6, .relative_tolerance = 0};
  CHECK(solve(Gmres{.stopping = six, .restart = 1'000'000'000'000}, affine, std::vector<double>(20))
            .z == solve(Gmres{.stopping = six, .restart = 6}, affine, std::vector<double>(20)).z);
}

TEST_CASE("A residual that grows without bound is a divergence") {
  auto f = column_map<B>(1, [](Index, const double* z, double* out) { out[0] = 3 * z[0] + 1; });
  const auto solved = solve(FixedPoint{}, f, {0});
  CHECK(solved.sample().status == SolveStatus::diverged);
  CHECK(solved.sample().iterations < 12);
  // Broyden has no need of a contraction.
  const auto broyden = solve(Broyden<>{}, f, {0});
  CHECK(broyden.sample().status == SolveStatus::converged);
  CHECK(broyden.z[0] == -0.5);
}

TEST_CASE("A NaN or an infinity ends a solve with the best finite iterate") {
  for (const double bad :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
    for_each_solver({.relative_tolerance = 1e-14}, [bad](const auto& solver) {
      int calls = 0;
      auto f = column_map<B>(3, [&](Index, const double* z, double* out) {
        CaseA::evaluate(z, out);
        if (++calls >= 4) out[1] = bad;
      });
      const auto solved = solve(solver, f, std::vector<double>(3));
      CHECK(solved.sample().status == SolveStatus::non_finite);
      CHECK(solved.sample().best_iteration == 2);
      CHECK(std::isfinite(solved.sample().relative));
      for (const double zi : solved.z) CHECK(std::isfinite(zi));
    });
  // At the start already: nothing better is known.
  auto f = column_map<B>(1, [](Index, const double*, double* out) {
    out[0] = std::numeric_limits<double>::quiet_NaN();
  });
  const auto solved = solve(Broyden<>{}, f, {3});
  CHECK(solved.sample().status == SolveStatus::non_finite);
  CHECK(solved.sample().iterations == 0);
  CHECK(solved.z[0] == 3);
}

TEST_CASE("An observer sees every step and may stop the solve") {
  for_each_solver({.relative_tolerance = 1e-12}, [](const auto& solver) {
    using Solver = std::remove_cvref_t<decltype(solver)>;
    auto f = case_a<B>();
    typename Solver::template Workspace<B> ws;
    std::vector<double> seen;
    const auto solved = solve(solver, f, std::vector<double>(6), ws, [&](const Observation& now) {
      CHECK(now.iteration == static_cast<int>(seen.size()));
      CHECK(now.active.count == 2);
      CHECK(now.relative(0) == now.relative(1));
      seen.push_back(now.absolute(0));
      return now.iteration == 3;
    });
    CHECK(seen.size() == 4);
    CHECK(solved.report.count(SolveStatus::stopped) == 2);
    CHECK(solved.sample().iterations == 3);
    CHECK(solved.sample().absolute <= seen[0]);
  });
}

TEST_CASE("A warm start saves steps, and each sample counts its own") {
  for_each_solver({.relative_tolerance = 1e-10}, [](const auto& solver) {
    auto f = case_a<B>();
    std::vector<double> z0{
        0, 0, 0, CaseA::solution[0] + 1e-8, CaseA::solution[1], CaseA::solution[2]};
    const auto solved = solve(solver, f, z0);
    CHECK(solved.report.all_converged());
    CHECK(solved.sample(1).iterations < solved.sample(0).iterations);
    CHECK(solved.sample(0).evaluations + solved.sample(1).evaluations == f.evaluations);
  });
}

TEST_CASE("Parameters outside their domain are refused by name") {
  auto f = case_a<B>();
  const auto complaint = [&](auto solver) {
    return message_of([&] { solve(solver, f, std::vector<double>(3)); });
  };
  const auto stopping = [&](Stopping rule) { return complaint(FixedPoint{.stopping = rule}); };
  CHECK(contains(stopping({.max_iterations = -1}), "max_iterations must be >= 0, got -1"));
  CHECK(contains(stopping({.relative_tolerance = -1e-3}),
                 "relative_tolerance must be >= 0, got -0.001"));
  CHECK(contains(stopping({.absolute_tolerance = -1}), "absolute_tolerance must be >= 0"));
  CHECK(contains(stopping({.relative_tolerance = std::nan("")}),
                 "relative_tolerance must be >= 0, got nan"));
  CHECK(contains(stopping({.divergence_factor = 1}), "divergence_factor must be > 1"));
  CHECK(contains(stopping({.stall_window = -1}), "stall_window must be >= 0"));
  CHECK(contains(stopping({.stall_ratio = 0.5}), "stall_ratio must be >= 1"));
  CHECK(contains(complaint(Broyden<>{.stopping = {.max_iterations = -1}}), "max_iterations"));
  CHECK(contains(complaint(Broyden<>{.memory = -1}), "Broyden: memory must be >= 0, got -1"));
  CHECK(contains(complaint(Broyden<StepsOnly>{.when_full = WhenFull::discard_oldest}),
                 "when_full must be restart or freeze"));
  CHECK(contains(complaint(Broyden<Pairs, Armijo>{.line_search = {.c = 0.5}}),
                 "Armijo: c must be in"));
  CHECK(contains(complaint(Broyden<Pairs, Armijo>{.line_search = {.max_backtracks = -1}}),
                 "max_backtracks must be >= 0"));
  CHECK(contains(complaint(Broyden<Pairs, Armijo>{.stopping = {.scope = Scope::batch}}),
                 "Scope::sample"));
  CHECK(contains(complaint(Anderson{.memory = -2}), "Anderson: memory must be >= 0, got -2"));
  CHECK(contains(complaint(Anderson{.beta = 0}), "beta must be > 0"));
  CHECK(contains(complaint(Anderson{.regularization = -1}), "regularization must be >= 0"));
  CHECK(contains(complaint(FixedPoint{.damping = 0}), "damping must be > 0"));
  DenseAffine<B> affine({0.5}, {1});
  CHECK(contains(message_of([&] { solve(Gmres{.restart = 0}, affine, {0}); }),
                 "restart must be >= 1"));
  CHECK(
      contains(message_of([&] { solve(Gmres{.stopping = {.scope = Scope::batch}}, affine, {0}); }),
               "Gmres: works with Scope::sample only"));
  CHECK(affine.products == 0);
  CHECK(f.evaluations == 0);
}

TEST_CASE("An empty batch is solved at once") {
  for (const Scope scope : {Scope::sample, Scope::batch})
    for_each_solver({.scope = scope}, [](const auto& solver) {
      auto f = case_a<B>();
      const auto solved = solve(solver, f, {});
      CHECK(solved.report.samples.empty());
      CHECK(solved.report.all_converged());
      CHECK(solved.report.mean_iterations() == 0);
    });
  DenseAffine<B> affine({0.5}, {1});
  CHECK(solve(Gmres{}, affine, {}).report.samples.empty());
}

TEST_CASE("Samples of no numbers are solved at once, and no null pointer is copied from") {
  for_each_solver({}, [](const auto& solver) {
    auto f = column_map<B>(0, [](Index, const double*, double*) {});
    typename std::remove_cvref_t<decltype(solver)>::template Workspace<B> ws;
    solver.solve(f, BatchView<double>{nullptr, 0, 3}, ws);
    CHECK(ws.report.samples.size() == 3);
    CHECK(ws.report.all_converged());
    CHECK(ws.report.max_iterations() == 0);
  });
}

TEST_CASE("A second solve with the same workspace asks the system for no memory") {
  const TanhFamily family(40, 8, 0.6, 3);
  auto f =
      column_map<B>(40, [&](Index s, const double* z, double* out) { family.evaluate(s, z, out); });
  for_each_solver({.relative_tolerance = 1e-9, .trace = true}, [&](const auto& solver) {
    using Solver = std::remove_cvref_t<decltype(solver)>;
    typename Solver::template Workspace<B> ws;
    const auto first = solve(solver, f, std::vector<double>(8 * 40), ws);
    const auto requests = HostPool::instance().system_requests();
    const auto second = solve(solver, f, std::vector<double>(8 * 40), ws);
    CHECK(HostPool::instance().system_requests() == requests);
    CHECK(first.z == second.z);
    // A smaller batch in the same workspace leaves no trace of the larger one.
    const auto smaller = solve(solver, f, std::vector<double>(2 * 40), ws);
    CHECK(HostPool::instance().system_requests() == requests);
    CHECK(smaller.report.samples.size() == 2);
    CHECK(same_bits(smaller.z.data(), first.z.data(), 2 * 40));
  });
}

namespace {

/// Eight samples with maps of their own; sample s uses the parameters parameter[s]. Parameters 6
/// and 7 are not well behaved.
constexpr Index n = 20, families = 8;
constexpr Index nan_parameter = 6, diverging_parameter = 7;
struct Mixture {
  TanhFamily family{n, families, 0.75, 17};
  std::vector<Index> parameter;

  void operator()(Index s, const double* z, double* out) const {
    const Index p = parameter[at(s)];
    family.evaluate(p, z, out);
    if (p == diverging_parameter)
      for (Index i = 0; i < n; ++i) out[i] = 4 * z[i] + z[i] * z[i] + 1;
    // The NaN comes after a few harmless steps.
    if (p == nan_parameter && z[0] != 0 && z[1] != 0 && ++calls > 2) out[0] = std::nan("");
  }
  mutable int calls = 0;
};

/// Everything that belongs to one sample, as bytes.
struct Result {
  std::vector<double> z, trace, inverse;
  SampleReport report;
};
bool identical(const Result& x, const Result& y) {
  const auto same = [](const std::vector<double>& a, const std::vector<double>& b) {
    return a.size() == b.size() && same_bits(a.data(), b.data(), static_cast<Index>(a.size()));
  };
  return same(x.z, y.z) && same(x.trace, y.trace) && same(x.inverse, y.inverse) &&
         x.report.status == y.report.status && x.report.iterations == y.report.iterations &&
         x.report.best_iteration == y.report.best_iteration &&
         x.report.evaluations == y.report.evaluations &&
         x.report.skipped_updates == y.report.skipped_updates &&
         same_bits(&x.report.absolute, &y.report.absolute, 1) &&
         same_bits(&x.report.relative, &y.report.relative, 1);
}

/// Solves the parameters as one batch; results in their order.
template <class Solver>
std::vector<Result> solve_mixture(const Solver& solver, const std::vector<Index>& parameter) {
  constexpr bool keeps = LeavesInverse<Solver, B>;
  auto f = column_map<B>(n, Mixture{.parameter = parameter});
  typename Solver::template Workspace<B> ws;
  const auto solved =
      solve < keeps
          ? KeepInverse::yes
          : KeepInverse::no > (solver, f, std::vector<double>(parameter.size() * at(n)), ws);
  std::vector<Result> results;
  for (std::size_t s = 0; s < parameter.size(); ++s) {
    const double* z = solved.z.data() + s * at(n);
    Result result{{z, z + n}, solved.report.relative_trace[s], {}, solved.report.samples[s]};
    if constexpr (keeps)
      result.inverse = apply<B>(ws.inverse, static_cast<Index>(s), Noise(5).vector(n), true);
    results.push_back(std::move(result));
  }
  return results;
}

template <class Solver>
void check_independence(const Solver& solver) {
  std::vector<Result> alone;
  for (Index p = 0; p < families; ++p) alone.push_back(solve_mixture(solver, {p})[0]);
  CHECK(alone[at(nan_parameter)].report.status == SolveStatus::non_finite);

  Noise random(23);
  for (int shuffle = 0; shuffle < 6; ++shuffle) {
    std::vector<Index> order(at(families));
    std::iota(order.begin(), order.end(), Index(0));
    for (std::size_t i = order.size(); i-- > 1;) std::swap(order[i], order[random.below(i + 1)]);
    order.resize(order.size() - at(shuffle % 3));  // not always everybody
    const auto together = solve_mixture(solver, order);
    for (std::size_t s = 0; s < order.size(); ++s) {
      CAPTURE(order[s]);
      CHECK(identical(together[s], alone[at(order[s])]));
    }
  }
  // Copies of one sample are copies to the end.
  const auto copies = solve_mixture(solver, {2, 2, 2, 2, 2, 2, 2, 2});
  for (const Result& copy : copies) CHECK(identical(copy, alone[2]));
}

}  // namespace

TEST_CASE("A sample's result does not depend on its neighbours") {
  const Stopping stopping{.max_iterations = 25, .relative_tolerance = 1e-9, .trace = true};
  for_each_solver(stopping, [](const auto& solver) { check_independence(solver); });
  // A budget that ends before convergence: the last update belongs to the inverse.
  Stopping short_budget = stopping;
  short_budget.max_iterations = 6;
  for_each_solver(short_budget, [](const auto& solver) { check_independence(solver); });
  for (const WhenFull when_full : {WhenFull::discard_oldest, WhenFull::discard_oldest_first,
                                   WhenFull::restart, WhenFull::freeze})
    check_independence(Broyden<>{.stopping = stopping, .memory = 4, .when_full = when_full});
  check_independence(Broyden<StepsOnly>{.stopping = stopping, .memory = 3});
  check_independence(Anderson{.stopping = stopping, .memory = 3});
}

TEST_CASE("Anderson's memories may differ from sample to sample when the budget ends") {
  // Sample 0 has one dimension to move in, so that its differences depend on each other and columns
  // are dropped; sample 1 has all of them.
  const auto run = [](std::vector<Index> kinds) {
    auto f = column_map<B>(6, [kinds](Index s, const double* z, double* out) {
      for (Index i = 0; i < 6; ++i)
        out[i] = kinds[at(s)] == 0
                     ? (i == 0 ? 0.5 * std::sin(z[0]) + 1 : 0)
                     : 0.8 * std::tanh(z[(i + 1) % 6] - 0.3 * z[i]) + 0.1 * static_cast<double>(i);
    });
    Anderson::Workspace<B> ws;
    const auto solved = solve<KeepInverse::yes>(
        Anderson{.stopping = {.max_iterations = 7, .relative_tolerance = 0}, .memory = 3}, f,
        std::vector<double>(kinds.size() * 6), ws);
    std::vector<std::vector<double>> all;
    for (std::size_t s = 0; s < kinds.size(); ++s) {
      const auto index = static_cast<Index>(s);
      CHECK(ws.inverse.rank(index) <= 3);
      all.push_back(apply<B>(ws.inverse, index, {1, 2, 3, 4, 5, 6}));
    }
    return all;
  };
  const auto together = run({0, 1, 0, 1}), first = run({0}), second = run({1});
  for (std::size_t s = 0; s < 4; ++s)
    CHECK(same_bits(together[s].data(), (s % 2 == 0 ? first : second)[0].data(), 6));
}

TEST_CASE("Gmres: a sample's result does not depend on its neighbours") {
  // One matrix for all; the right-hand sides, which come in through the start, differ.
  const DenseAffine<B> map(Noise(31).vector(n * n, 0.35), std::vector<double>(at(n)));
  const Gmres solver{
      .stopping = {.relative_tolerance = 0, .absolute_tolerance = 1e-9, .trace = true},
      .restart = 6};
  std::vector<std::vector<double>> starts;
  for (std::uint32_t s = 0; s < 6; ++s)
    starts.push_back(Noise(40 + s).vector(n, s == 2 ? 1e-12 : 1));
  starts.push_back(std::vector<double>(at(n), std::nan("")));
  std::vector<Solved<double>> alone;
  for (const auto& z0 : starts) {
    DenseAffine<B> f = map;
    alone.push_back(solve(solver, f, z0));
  }
  CHECK(alone[6].sample().status == SolveStatus::non_finite);
  CHECK(alone[2].sample().iterations == 0);
  for (const std::vector<std::size_t>& order :
       {std::vector<std::size_t>{0, 1, 2, 3, 4, 5, 6}, {6, 3, 2, 5, 1}, {4, 4, 6, 0}}) {
    std::vector<double> z0;
    for (const std::size_t p : order) z0.insert(z0.end(), starts[p].begin(), starts[p].end());
    DenseAffine<B> f = map;
    const auto together = solve(solver, f, z0);
    for (std::size_t s = 0; s < order.size(); ++s) {
      CHECK(same_bits(together.z.data() + s * at(n), alone[order[s]].z.data(), n));
      CHECK(together.report.samples[s].evaluations == alone[order[s]].sample().evaluations);
      CHECK(together.report.samples[s].status == alone[order[s]].sample().status);
      CHECK(together.report.relative_trace[s] == alone[order[s]].report.relative_trace[0]);
    }
  }
}

TEST_CASE("Scope::batch shares one residual: all samples end at the same step") {
  const TanhFamily family(n, 3, 0.7, 29);
  const auto evaluate = [&](Index s, const double* z, double* out) {
    family.evaluate(s, z, out);
    if (s == 1)
      for (Index i = 0; i < n; ++i) out[i] = 0.01 * z[i] + 1;
  };
  for_each_solver({.max_iterations = 200, .relative_tolerance = 1e-8, .scope = Scope::batch},
                  [&](const auto& solver) {
                    auto f = column_map<B>(n, evaluate);
                    const auto shared = solve(solver, f, std::vector<double>(3 * at(n)));
                    for (Index s = 1; s < 3; ++s) {
                      CHECK(shared.sample(s).iterations == shared.sample(0).iterations);
                      CHECK(shared.sample(s).relative == shared.sample(0).relative);
                      CHECK(shared.sample(s).status == shared.sample(0).status);
                    }
                    auto g = column_map<B>(n, evaluate);
                    auto own = solver;
                    own.stopping.scope = Scope::sample;
                    const auto each = solve(own, g, std::vector<double>(3 * at(n)));
                    CHECK(each.sample(1).iterations < each.sample(0).iterations);
                    CHECK(each.sample(1).iterations < shared.sample(1).iterations);
                    CHECK(each.report.all_converged());
                  });
}
