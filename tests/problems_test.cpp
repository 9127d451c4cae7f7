// SPDX-License-Identifier: MIT
// The test problems of support/problems.hpp: that they are what they claim, and which of them the
// solvers solve.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <deq/backend/cpu/cpu.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/broyden.hpp>

#include "support/maps.hpp"
#include "support/problems.hpp"

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
  CHECK(library_problems()[10].max_norm(std::vector<double>(10)) == 0);       // 11
  CHECK(library_problems()[16].max_norm({3, 0}) == 0);                        // 17
  CHECK(library_problems()[17].max_norm({0, 7}) == 0);                        // 18
  CHECK(library_problems()[19].max_norm({0}) == 0);                           // 20
  CHECK(library_problems()[21].max_norm({-1, 2}) <= 1e-15);                   // 22
}

TEST_CASE("The 23 problems: what was solved when this was written is still solved") {
  // Memory for every step; max |F| <= 1e-4 passes, as in the library's own tests.
  const Stopping stopping = root_finding(500, 1e-8);
  struct Setting {
    const char* name;
    std::set<int> solved;  // by every compiler and optimisation level that was tried
    std::vector<Outcome> outcomes = {};
  };
  Setting settings[]{
      {"B0 = -I", {}},
      {"B0 = +I", {}},
      {"-I, Armijo", {}},
      {"+I, Armijo", {}},
      {"Anderson", {}},
  };
  for (const Problem& problem : library_problems())
    for (int i = 0; i < 5; ++i) {
      const double sign = i % 2 == 0 ? 1 : -1;
      Outcome outcome;
      if (i < 2)
        outcome = attempt(Broyden<>{.stopping = stopping, .memory = 500}, problem, sign, 1e-4);
      else if (i < 4)
        outcome = attempt(Broyden<Pairs, Armijo>{.stopping = stopping, .memory = 500}, problem, sign, 1e-4);
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
}
