// SPDX-License-Identifier: MIT
// Solvers name no backend: they give the same answers on one they have never heard of, whose fresh
// memory is full of NaNs.
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/cpu/cpu.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/broyden.hpp>
#include <deq/solver/fixed_point.hpp>
#include <deq/solver/gmres.hpp>

#include "support/maps.hpp"
#include "support/naive_backend.hpp"
#include "support/threads.hpp"

using namespace deq;
using namespace deq_test;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// Six samples of tanh maps, 20 steps; one of them diverges to a NaN.
template <class B, KeepInverse keep = KeepInverse::no, class Solver>
Solved<typename B::Scalar> solve_family(
    const Solver& solver, std::vector<std::vector<typename B::Scalar>>* transposed = nullptr) {
  using S = typename B::Scalar;
  constexpr Index n = 10;
  const TanhFamily family(n, 6, 0.7, 50);
  auto f = column_map<B>(n, [&](Index s, const S* z, S* out) {
    family.evaluate(s, z, out);
    if (s == 3) out[1] = std::numeric_limits<S>::quiet_NaN();
  });
  typename Solver::template Workspace<B> ws;
  auto solved = solve<keep>(solver, f, std::vector<S>(at(6 * n)), ws);
  if constexpr (keep == KeepInverse::yes)
    for (Index s = 0; s < 6; ++s)
      transposed->push_back(apply<B>(ws.inverse, s, std::vector<S>(at(n), S(1)), true));
  return solved;
}

template <class S, KeepInverse keep = KeepInverse::no, class Solver>
void compare_backends(Solver solver, double tolerance) {
  std::vector<std::vector<S>> cpu_h, naive_h;
  const auto cpu = solve_family<Cpu<S>, keep>(solver, &cpu_h);
  const auto naive = solve_family<NaiveBackend<S>, keep>(solver, &naive_h);
  for (Index s = 0; s < 6; ++s) {
    CHECK(cpu.sample(s).status == naive.sample(s).status);
    if (s == 3) {
      CHECK(naive.sample(s).status == SolveStatus::non_finite);
      continue;
    }
    CHECK(cpu.sample(s).iterations == naive.sample(s).iterations);
    CHECK(cpu.sample(s).evaluations == naive.sample(s).evaluations);
    CHECK(relative_error(std::vector<S>(cpu.col(s, 10), cpu.col(s + 1, 10)),
                         std::vector<S>(naive.col(s, 10), naive.col(s + 1, 10))) < tolerance);
    if (keep == KeepInverse::yes)
      CHECK(relative_error(cpu_h[at(s)], naive_h[at(s)]) < 1e3 * tolerance);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("Every solver gives the same answer on both backends, memory full of NaNs", S,
                   float, double) {
  const double eps = static_cast<double>(std::numeric_limits<S>::epsilon());
  Stopping stopping{.max_iterations = 12, .relative_tolerance = 1e5 * eps};
  if (std::is_same_v<S, double>) stopping.relative_tolerance = 1e-7;
  constexpr auto yes = KeepInverse::yes;
  compare_backends<S>(FixedPoint{.stopping = stopping}, 1e3 * eps);
  compare_backends<S>(FixedPoint{.stopping = stopping, .damping = 0.7}, 1e3 * eps);
  compare_backends<S, yes>(Broyden<>{.stopping = stopping}, 1e4 * eps);
  for (const WhenFull when_full : {WhenFull::discard_oldest, WhenFull::discard_oldest_first,
                                   WhenFull::restart, WhenFull::freeze})
    compare_backends<S, yes>(Broyden<>{.stopping = stopping, .memory = 3, .when_full = when_full},
                             1e4 * eps);
  compare_backends<S, yes>(Broyden<StepsOnly>{.stopping = stopping, .memory = 4}, 1e4 * eps);
  compare_backends<S, yes>(Broyden<Pairs, Armijo>{.stopping = stopping}, 1e4 * eps);
  compare_backends<S, yes>(Anderson{.stopping = stopping, .memory = 3}, 1e4 * eps);
  compare_backends<S, yes>(Anderson{.stopping = stopping, .memory = 5, .beta = 0.8}, 1e4 * eps);
}

TEST_CASE_TEMPLATE("Gmres gives the same answer on both backends", S, float, double) {
  constexpr Index n = 12;
  const auto a = Noise(60).vector(n * n, 0.3), b = Noise(61).vector(n);
  DenseAffine<Cpu<S>> cpu(a, b);
  DenseAffine<NaiveBackend<S>> naive(a, b);
  const Gmres solver{.stopping = {.relative_tolerance = std::is_same_v<S, float> ? 1e-5 : 1e-12},
                     .restart = 5};
  const auto x = solve(solver, cpu, std::vector<S>(at(2 * n))),
             y = solve(solver, naive, std::vector<S>(at(2 * n)));
  CHECK(x.report.all_converged());
  CHECK(y.report.all_converged());
  CHECK(relative_error(x.z, y.z) < (std::is_same_v<S, float> ? 1e-4 : 1e-11));
}

TEST_CASE_TEMPLATE("Threads share a single large sample, and no bit depends on how many", S, float,
                   double) {
  constexpr Index n = 70001;
  const auto run = [](int threads, auto solver) {
    const Threads scope(threads);
    auto f = column_map<Cpu<S>>(n, [](Index, const S* z, S* out) {
      for (Index i = 0; i < n; ++i)
        out[i] = std::cos(z[i] + S(0.3) * z[(i + 1) % n] + static_cast<S>(i % 7));
    });
    typename decltype(solver)::template Workspace<Cpu<S>> ws;
    const auto solved = solve<KeepInverse::yes>(solver, f, std::vector<S>(at(n)), ws);
    return std::pair(solved.z, apply<Cpu<S>>(ws.inverse, 0, solved.z, true));
  };
  const auto check = [&](auto solver) {
    const auto one = run(1, solver);
    CHECK(run(2, solver) == one);
    CHECK(run(3, solver) == one);
  };
  const Stopping stopping{.max_iterations = 8, .relative_tolerance = 0};
  check(Broyden<StepsOnly>{.stopping = stopping, .memory = 8});
  check(Broyden<Pairs>{.stopping = stopping, .memory = 8});
  check(Anderson{.stopping = stopping, .memory = 4});
}

TEST_CASE("What is allocated on a backend is given back") {
  const long before = NaiveBackend<double>::live_blocks;
  {
    solve_family<NaiveBackend<double>>(Broyden<>{});
    solve_family<NaiveBackend<double>>(Anderson{});
  }
  CHECK(NaiveBackend<double>::live_blocks == before);
}
