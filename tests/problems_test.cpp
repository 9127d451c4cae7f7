// SPDX-License-Identifier: MIT
// The test problems of support/problems.hpp: that they are what they claim, and which of them the
// solvers solve.
#include "support/problems.hpp"

#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/cpu/cpu.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/broyden.hpp>

#include "support/maps.hpp"

using namespace deq;
using namespace deq_test;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// Root finding judges |F| alone, and lets a solve wander before it converges.
Stopping root_finding(int steps, double tolerance) {
  return {.max_iterations = steps,
          .relative_tolerance = 0,
          .absolute_tolerance = tolerance,
          .divergence_factor = infinity,
          .stall_window = 0};
}

struct Outcome {
  bool solved = false;
  int steps = 0;
  std::vector<double> z;
};
template <class B = Cpu<double>, class Solver>
Outcome attempt(const Solver& solver, const Problem& problem, double sign, double max_norm) {
  ProblemMap<B> f(problem, sign);
  using S = typename B::Scalar;
  std::vector<S> start(problem.start.begin(), problem.start.end());
  const Solved<S> solved = solve(solver, f, std::move(start));
  const std::vector<double> z(solved.z.begin(), solved.z.end());
  return {problem.max_norm(z) <= max_norm, solved.sample().iterations, z};
}

}  // namespace

TEST_CASE("Every problem has its solution to the printed digits") {
  for (const auto* list :
       {&library_problems(), &source_variants(), &scipy_problems(), &fixed_point_problems()})
    for (const Problem& problem : *list) {
      CAPTURE(problem.name);
      REQUIRE(problem.solution.size() == problem.n());
      CHECK(problem.max_norm(problem.solution) <= problem.digits);
      CHECK(std::isfinite(problem.max_norm(problem.start)));
    }
  CHECK(library_problems().size() == 23);
}

TEST_CASE("The other roots of the library's problems are roots as well") {
  CHECK(library_problems()[10].max_norm(std::vector<double>(10)) == 0);  // 11
  CHECK(library_problems()[16].max_norm({3, 0}) == 0);                   // 17
  CHECK(library_problems()[17].max_norm({0, 7}) == 0);                   // 18
  CHECK(library_problems()[19].max_norm({0}) == 0);                      // 20
  CHECK(library_problems()[21].max_norm({-1, 2}) <= 1e-15);              // 22
}

TEST_CASE("The 23 problems: what was solved when this was written is still solved") {
  // Memory for every step; max |F| <= 1e-4 passes, as in the library's own tests.
  const Stopping stopping = root_finding(500, 1e-8);
  struct Setting {
    const char* name;
    std::set<int> solved;  // with gcc 12 and clang 14, -O0 to -O3, with and without FMA
    std::vector<Outcome> outcomes = {};
  };
  Setting settings[]{
      {"B0 = -I", {2, 3, 7, 8, 9, 10, 11, 17, 18, 19, 20, 21, 22, 23}},
      {"B0 = +I", {3, 7, 8, 9, 10, 15, 16, 17, 18, 19, 20, 21, 22, 23}},
      {"-I, Armijo", {2, 5, 6, 7, 8, 9, 10, 12, 13, 14, 17, 18, 19, 20, 23}},
      {"+I, Armijo", {1, 3, 4, 5, 7, 8, 9, 10, 12, 14, 15, 16, 17, 18, 19, 20, 22, 23}},
      {"Anderson", {1, 2, 3, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 22, 23}},
  };
  for (const Problem& problem : library_problems())
    for (int i = 0; i < 5; ++i) {
      const double sign = i % 2 == 0 ? 1 : -1;
      Outcome outcome;
      if (i < 2)
        outcome = attempt(Broyden<>{.stopping = stopping, .memory = 500}, problem, sign, 1e-4);
      else if (i < 4)
        outcome = attempt(Broyden<Pairs, Armijo>{.stopping = stopping, .memory = 500}, problem,
                          sign, 1e-4);
      else
        outcome = attempt(Anderson{.stopping = stopping, .memory = static_cast<Index>(problem.n())},
                          problem, sign, 1e-4);
      settings[i].outcomes.push_back(std::move(outcome));
    }

  std::string table = "steps to |F| <= 1e-8 (max |F| <= 1e-4 passes)\n\n| problem |";
  for (const Setting& setting : settings) table += std::string(" ") + setting.name + " |";
  table += "\n|---|---|---|---|---|---|\n";
  std::set<int> solved_by_any;
  for (std::size_t p = 0; p < 23; ++p) {
    table += "| " + library_problems()[p].name + " |";
    for (const Setting& setting : settings) {
      const Outcome& outcome = setting.outcomes[p];
      table += outcome.solved ? " " + std::to_string(outcome.steps) + " |" : " - |";
      if (outcome.solved) solved_by_any.insert(static_cast<int>(p) + 1);
    }
    table += "\n";
  }
  table += "| solved |";
  for (const Setting& setting : settings) {
    int count = 0;
    for (const Outcome& outcome : setting.outcomes) count += outcome.solved;
    table += " " + std::to_string(count) + " |";
  }
  table += "\nby any setting: " + std::to_string(solved_by_any.size());
  MESSAGE(table);
  for (const Setting& setting : settings)
    for (const int p : setting.solved) {
      CAPTURE(setting.name);
      CAPTURE(p);
      CHECK(setting.outcomes[static_cast<std::size_t>(p - 1)].solved);
    }
  CHECK(solved_by_any.size() == 23);
}

TEST_CASE("Problem 16 from B0 = -I wanders for hundreds of steps, and mostly arrives") {
  // The path hangs on the last digits: from 26 to 32 of 40 starts, by the order of a sum.
  int solved = 0;
  for (int start = 0; start < 40; ++start) {
    Problem problem = library_problems()[15];
    for (std::size_t i = 0; i < problem.n(); ++i)
      problem.start[i] +=
          start == 0 ? 0 : 1e-15 * ((start * 7 + static_cast<int>(i) * 13) % 11 - 5);
    solved +=
        attempt(Broyden<>{.stopping = root_finding(500, 1e-8), .memory = 500}, problem, 1, 1e-4)
            .solved;
  }
  CHECK(solved >= 20);
}

TEST_CASE("Where the library departs from its sources, the sources' problems are solved as well") {
  const Broyden<> broyden{.stopping = root_finding(500, 1e-10), .memory = 500};
  for (const std::size_t i : {1, 2}) {
    CAPTURE(source_variants()[i].name);
    const Outcome outcome = attempt(broyden, source_variants()[i], -1, 1e-9);
    CHECK(outcome.solved);
    CHECK(relative_error(outcome.z, source_variants()[i].solution) < 1e-8);
  }
}

TEST_CASE("scipy's systems: |F| < 1e-2 within 200 steps") {
  for (const Problem& problem : scipy_problems()) {
    CAPTURE(problem.name);
    const Stopping stopping = root_finding(200, 1e-3);
    const auto memory = static_cast<Index>(problem.n());
    CHECK(attempt(Broyden<Pairs, Armijo>{.stopping = stopping, .memory = 200}, problem, 1, 1e-2)
              .solved);
    CHECK(attempt(Anderson{.stopping = stopping, .memory = memory}, problem, 1, 1e-2).solved);
    // Full steps wander for long in S5 before they converge.
    if (problem.name.starts_with("S5")) continue;
    CHECK(attempt(Broyden<>{.stopping = stopping, .memory = 200}, problem, 1, 1e-2).solved);
    CHECK(
        attempt(Broyden<StepsOnly>{.stopping = stopping, .memory = 200}, problem, 1, 1e-2).solved);
  }
  // S1 to 1e-9 in 12 steps.
  const Outcome s1 =
      attempt(Broyden<>{.stopping = root_finding(12, 1e-12)}, scipy_problems()[0], 1, 1e-9);
  CHECK(s1.solved);
  // S7: a budget of one step is too small for F = 1000 + x, and the report says so.
  const Problem shifted{"S7", {0}, {-1000}, [](const auto& x, auto& F) { F[0] = 1000 + x[0]; }};
  ProblemMap<Cpu<double>> f(shifted);
  const auto one_step = solve(Broyden<>{.stopping = root_finding(1, 1e-3)}, f, {0.0});
  CHECK(one_step.sample().status == SolveStatus::budget_exhausted);
  CHECK(one_step.sample().iterations == 1);
}

TEST_CASE("Fixed points of jaxopt, optimistix, deq-jax and banax, in double and in float") {
  for (const Problem& problem : fixed_point_problems()) {
    CAPTURE(problem.name);
    const bool slow = problem.name.starts_with("J1");
    const auto check = [&](const Outcome& outcome, double tolerance, int steps) {
      CHECK(outcome.solved);
      CHECK(outcome.steps <= steps);
      double worst = 0;
      for (std::size_t i = 0; i < problem.n(); ++i)
        worst = worse(worst, std::abs(outcome.z[i] - problem.solution[i]));
      // |z - z*| <= |F| / smallest singular value of I - J
      CHECK(worst <= (slow ? 1e3 : 2) * tolerance);
    };
    check(attempt(Broyden<>{.stopping = root_finding(20, 1e-10)}, problem, 1, 1e-10), 1e-10, 12);
    check(attempt(Broyden<StepsOnly>{.stopping = root_finding(20, 1e-10)}, problem, 1, 1e-10),
          1e-10, 12);
    check(attempt(Anderson{.stopping = root_finding(20, 1e-10), .memory = 3}, problem, 1, 1e-10),
          1e-10, 12);
    check(attempt<Cpu<float>>(Broyden<>{.stopping = root_finding(20, 1e-5)}, problem, 1, 1e-5),
          1e-5, 12);
    check(attempt<Cpu<float>>(Anderson{.stopping = root_finding(20, 1e-5), .memory = 3}, problem, 1,
                              1e-5),
          1e-5, 12);
  }
}
