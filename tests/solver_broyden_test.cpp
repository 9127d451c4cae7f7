// SPDX-License-Identifier: MIT
// Broyden against a textbook implementation with dense matrices, iterate by iterate.
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include <Eigen/Dense>
#include <doctest/doctest.h>

#include <deq/backend/cpu/cpu.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/broyden.hpp>
#include <deq/solver/fixed_point.hpp>

#include "support/maps.hpp"

using namespace deq;
using namespace deq_test;
using Eigen::MatrixXd;
using Eigen::VectorXd;

namespace {

using B = Cpu<double>;

/// The good Broyden method as the paper writes it, B^-1 a dense matrix, its pairs kept in a list.
class DenseBroyden {
 public:
  DenseBroyden(Index dim, Index memory, WhenFull when_full)
      : n_(dim), memory_(static_cast<std::size_t>(memory)), when_full_(when_full) {}

  template <class Residual>
  void step(Residual g_of, VectorXd& z, double length = 1) {
    const MatrixXd h = inverse();
    const VectorXd g = g_of(z), dz = -length * (h * g);
    z += dz;
    update(dz, g_of(z) - g);
  }
  MatrixXd inverse() const {
    MatrixXd h = -MatrixXd::Identity(n_, n_);
    for (std::size_t i = 0; i < u_.size(); ++i) h += u_[i] * v_[i].transpose();
    return h;
  }
  std::size_t rank() const { return u_.size(); }

 private:
  void update(const VectorXd& dz, const VectorXd& dg) {
    const bool full = u_.size() == memory_;
    if (full && when_full_ == WhenFull::freeze) return;
    if (full && when_full_ == WhenFull::restart) {
      u_.clear();
      v_.clear();
      return;
    }
    if (full && (when_full_ == WhenFull::discard_oldest_first)) drop_oldest();
    const MatrixXd h = inverse();
    const VectorXd v = h.transpose() * dz, u = (dz - h * dg) / v.dot(dg);
    u_.push_back(u);
    v_.push_back(v);
    if (u_.size() > memory_) drop_oldest();
  }
  void drop_oldest() {
    u_.erase(u_.begin());
    v_.erase(v_.begin());
  }

  Index n_;
  std::size_t memory_;
  WhenFull when_full_;
  std::vector<VectorXd> u_, v_;
};

VectorXd eigen(const std::vector<double>& x) {
  return Eigen::Map<const VectorXd>(x.data(), static_cast<Index>(x.size()));
}
template <class H>
MatrixXd dense(const H& h, Index sample = 0) {
  const std::vector<double> columns = to_dense<B>(h, sample);
  return Eigen::Map<const MatrixXd>(columns.data(), h.dim(), h.dim());
}
double error(const MatrixXd& x, const MatrixXd& y) { return (x - y).norm() / y.norm(); }

/// A stiff enough tanh map: Picard needs hundreds of steps.
constexpr Index n = 12;
const TanhFamily& family() {
  static const TanhFamily maps(n, 3, 1.1, 101);
  return maps;
}
VectorXd residual(Index p, const VectorXd& z) {
  VectorXd f(n);
  family().evaluate(p, z.data(), f.data());
  return f - z;
}
auto family_map() {
  return column_map<B>(n, [](Index s, const double* z, double* f) { family().evaluate(s, z, f); });
}

constexpr WhenFull every_way[]{WhenFull::discard_oldest, WhenFull::discard_oldest_first,
                               WhenFull::restart, WhenFull::freeze};

Stopping steps(int count) {
  return {.max_iterations = count, .relative_tolerance = 0, .stall_window = 0, .trace = true};
}

/// Runs both side by side for `count` steps on the three maps and compares every iterate, every
/// residual and the final inverse.
template <class Solver>
void compare(Solver solver, int count, double tolerance = 1e-9) {
  solver.stopping = steps(count);
  for (Index p = 0; p < 3; ++p) {
    CAPTURE(p);
    CAPTURE(static_cast<int>(solver.when_full));
    auto f = family_map();
    f.recorded_sample = p;
    typename Solver::template Workspace<B> ws;
    const auto solved = solve<KeepInverse::yes>(
        solver, f, std::vector<double>(static_cast<std::size_t>(3 * n)), ws);

    DenseBroyden reference(n, solver.memory, solver.when_full);
    VectorXd z = VectorXd::Zero(n);
    REQUIRE(f.path.size() == static_cast<std::size_t>(count) + 1);
    for (int k = 1; k <= count; ++k) {
      CAPTURE(k);
      reference.step([&](const VectorXd& x) { return residual(p, x); }, z);
      CHECK(error(eigen(f.path[static_cast<std::size_t>(k)]), z) < tolerance);
      const double trace =
          solved.report
              .absolute_trace[static_cast<std::size_t>(p)][static_cast<std::size_t>(k - 1)];
      CHECK(trace == doctest::Approx(residual(p, z).norm()).epsilon(1e3 * tolerance));
    }
    CHECK(static_cast<std::size_t>(ws.inverse.rank(p)) == reference.rank());
    CHECK(error(dense(ws.inverse, p), reference.inverse()) < 1e4 * tolerance);
  }
}

}  // namespace

TEST_CASE("Broyden with pairs is the textbook method, whatever happens when the memory is full") {
  compare(Broyden<>{.memory = 20}, 12);
  for (const WhenFull when_full : every_way)
    for (const Index memory : {1, 2, 5})
      compare(Broyden<>{.memory = memory, .when_full = when_full}, 14);
}

TEST_CASE("Broyden with its steps alone is the same method") {
  compare(Broyden<StepsOnly>{.memory = 20}, 12);
  for (const WhenFull when_full : {WhenFull::restart, WhenFull::freeze})
    for (const Index memory : {1, 2, 5})
      compare(Broyden<StepsOnly>{.memory = memory, .when_full = when_full}, 14);
}

TEST_CASE("A dense inverse updated by Sherman and Morrison's formula is the same inverse") {
  auto f = family_map();
  f.recorded_sample = 0;
  Broyden<>::Workspace<B> ws;
  solve<KeepInverse::yes>(Broyden<>{.stopping = steps(10)}, f, std::vector<double>(12), ws);
  MatrixXd h = -MatrixXd::Identity(n, n);
  for (std::size_t k = 1; k < f.path.size(); ++k) {
    const VectorXd z = eigen(f.path[k]), dz = z - eigen(f.path[k - 1]);
    const VectorXd g = residual(0, z), hg = h * g;
    // B^-1 <- B^-1 - (B^-1 g+) (dz^T B^-1) / (dz . (dz + B^-1 g+)), the paper's form
    h -= hg * (dz.transpose() * h) / dz.dot(dz + hg);
  }
  CHECK(error(dense(ws.inverse), h) < 1e-9);
}

TEST_CASE("Apply, apply_transpose and to_dense agree, for one sample of a batch") {
  const auto check = [](auto solver) {
    auto f = family_map();
    typename decltype(solver)::template Workspace<B> ws;
    solve<KeepInverse::yes>(solver, f, std::vector<double>(36), ws);
    CHECK(ws.inverse.dim() == n);
    Noise random(9);
    for (Index s = 0; s < 3; ++s) {
      const MatrixXd h = dense(ws.inverse, s);
      for (int i = 0; i < 5; ++i) {
        const std::vector<double> x = random.vector(n);
        CHECK(error(eigen(apply<B>(ws.inverse, s, x)), h * eigen(x)) < 1e-12);
        CHECK(error(eigen(apply<B>(ws.inverse, s, x, true)), h.transpose() * eigen(x)) < 1e-12);
      }
    }
  };
  check(Broyden<>{.stopping = steps(14)});
  for (const WhenFull when_full : every_way)
    check(Broyden<>{.stopping = steps(14), .memory = 5, .when_full = when_full});
  check(Broyden<StepsOnly>{.stopping = steps(14)});
  check(Broyden<StepsOnly>{.stopping = steps(14), .memory = 5});
  check(Broyden<Pairs, Armijo>{.stopping = steps(14)});
}

TEST_CASE("Dropping the oldest pair first keeps the newest secant, dropping it last does not") {
  for (const WhenFull when_full : {WhenFull::discard_oldest_first, WhenFull::discard_oldest}) {
    for (const int count : {3, 4, 5, 9, 11}) {
      CAPTURE(count);
      auto f = family_map();
      f.recorded_sample = 0;
      Broyden<>::Workspace<B> ws;
      solve<KeepInverse::yes>(
          Broyden<>{.stopping = steps(count), .memory = 4, .when_full = when_full}, f,
          std::vector<double>(12), ws);
      const VectorXd z0 = eigen(f.path[f.path.size() - 2]), z1 = eigen(f.path.back());
      const VectorXd dg = residual(0, z1) - residual(0, z0);
      const double secant = error(dense(ws.inverse) * dg, z1 - z0);
      if (when_full == WhenFull::discard_oldest_first || count <= 4)
        CHECK(secant < 1e-9);
      else
        CHECK(secant > 1e-6);
    }
  }
}

TEST_CASE("With a line search the pairs still meet the secant, and the residual does not rise") {
  // A map whose full steps overshoot.
  auto f = column_map<B>(2, [](Index, const double* z, double* out) {
    out[0] = z[0] + 3 * std::atan(z[0] - 1) + 0.2 * z[1];
    out[1] = z[1] + 3 * std::atan(z[1] + 2);
  });
  f.recorded_sample = 0;
  Broyden<Pairs, Armijo>::Workspace<B> ws;
  const auto solved =
      solve<KeepInverse::yes>(Broyden<Pairs, Armijo>{.stopping = {.max_iterations = 60,
                                                                  .relative_tolerance = 0,
                                                                  .absolute_tolerance = 1e-10,
                                                                  .trace = true}},
                              f, {4, 3}, ws);
  CHECK(solved.sample().status == SolveStatus::converged);
  CHECK(solved.sample().evaluations == f.evaluations);
  CHECK(solved.sample().evaluations > solved.sample().iterations + 1);  // it did search
  CHECK(ws.inverse.rank(0) == solved.sample().iterations - 1);
  int rises = 0;
  const auto& trace = solved.report.absolute_trace[0];
  for (std::size_t k = 1; k < trace.size(); ++k) rises += trace[k] > trace[k - 1];
  // Only where max_backtracks ends the search.
  CHECK(rises <= 2);
}

TEST_CASE("The line search's own step lengths make textbook pairs") {
  // Armijo and full steps on a linear map with an expanding direction.
  const auto evaluate = [](const double* z, double* out) {
    out[0] = 6 * z[0] - z[1] + 1;
    out[1] = 0.5 * z[0] - 4 * z[1] + 2;
    out[2] = 0.3 * z[2] + std::sin(z[0]);
  };
  auto f = column_map<B>(3, [&](Index, const double* z, double* out) { evaluate(z, out); });
  Broyden<Pairs, Armijo>::Workspace<B> ws;
  const auto g_of = [&](const VectorXd& z) {
    VectorXd out(3);
    evaluate(z.data(), out.data());
    return VectorXd(out - z);
  };
  DenseBroyden reference(3, 20, WhenFull::discard_oldest);
  VectorXd z = VectorXd::Zero(3);
  bool shortened = false;
  for (int k = 0; k < 8; ++k) {
    // The rule of Armijo, written out.
    const VectorXd g = g_of(z), d = -(reference.inverse() * g);
    double t = 1;
    for (int backtracks = 0; backtracks < 6; ++backtracks) {
      const double start = g.squaredNorm(), now = g_of(z + t * d).squaredNorm();
      if (now <= (1 - 2e-4 * t) * start) break;
      const double minimiser = start * t * t / (now - start + 2 * start * t);
      t = std::min(std::max(minimiser, t / 10), t / 2);
      shortened = true;
    }
    reference.step(g_of, z, t);
  }
  CHECK(shortened);
  f.recorded_sample = 0;
  solve<KeepInverse::yes>(Broyden<Pairs, Armijo>{.stopping = steps(8)}, f, std::vector<double>(3),
                          ws);
  CHECK(error(eigen(f.path.back()), z) < 1e-9);
  CHECK(error(dense(ws.inverse), reference.inverse()) < 1e-8);
}

TEST_CASE("Case A: the published residuals, and the steps to 1e-3 and 1e-6") {
  constexpr double published[]{.19511877,    .070866236,  .018798488,    .0015705977, 1.6176111e-4,
                               2.3850852e-6, 8.678783e-9, 1.3019891e-10, 5.079176e-13};
  const auto check = [&](auto solver) {
    auto f = case_a<B>();
    solver.stopping = {
        .max_iterations = 30, .relative_tolerance = 0, .absolute_tolerance = 1e-12, .trace = true};
    const auto solved = solve(solver, f, std::vector<double>(3));
    const auto& trace = solved.report.absolute_trace[0];
    REQUIRE(trace.size() == 9);
    for (std::size_t k = 0; k < 9; ++k) {
      CAPTURE(k);
      // Eight printed digits, less what rounding takes from a small residual.
      CHECK(std::abs(trace[k] - published[k]) < 1e-7 * published[k] + 1e-15);
    }
    CHECK(relative_error(solved.z, CaseA::solution) < 1e-12);
    for (const auto& [tolerance, expected] : {std::pair{1e-3, 5}, {1e-6, 7}, {1e-10, 9}}) {
      solver.stopping.absolute_tolerance = tolerance;
      CHECK(solve(solver, f, std::vector<double>(3)).sample().iterations == expected);
    }
  };
  check(Broyden<>{});
  check(Broyden<StepsOnly>{});
}

TEST_CASE("Case B: on a scalar linear map the inverse is exact after one update") {
  auto f = column_map<B>(1, [](Index, const double* z, double* out) { out[0] = 0.5 * z[0] + 1; });
  const auto check = [&](auto solver) {
    typename decltype(solver)::template Workspace<B> ws;
    const auto solved = solve<KeepInverse::yes>(solver, f, {0}, ws);
    CHECK(solved.sample().iterations == 2);
    CHECK(solved.z[0] == 2);
    CHECK(ws.inverse.rank(0) == 1);
    CHECK(to_dense<B>(ws.inverse, 0) == std::vector<double>{-2});
  };
  check(Broyden<>{});
  check(Broyden<StepsOnly>{});
  check(Broyden<Pairs, Armijo>{});
}

TEST_CASE("There is one pair a step, less one where the last step converged") {
  const auto check = [](auto solver) {
    auto f = family_map();
    typename decltype(solver)::template Workspace<B> ws;
    const auto converged = solve<KeepInverse::yes>(solver, f, std::vector<double>(36), ws);
    for (Index s = 0; s < 3; ++s) {
      CHECK(converged.sample(s).converged());
      CHECK(ws.inverse.rank(s) == converged.sample(s).iterations - 1);
    }
    solver.stopping.max_iterations = 5;
    const auto exhausted = solve<KeepInverse::yes>(solver, f, std::vector<double>(36), ws);
    for (Index s = 0; s < 3; ++s) {
      CHECK(exhausted.sample(s).status == SolveStatus::budget_exhausted);
      CHECK(ws.inverse.rank(s) == 5);
      CHECK(exhausted.sample(s).skipped_updates == 0);
    }
  };
  const Stopping stopping{.max_iterations = 60, .relative_tolerance = 1e-8};
  check(Broyden<>{.stopping = stopping, .memory = 60});
  check(Broyden<StepsOnly>{.stopping = stopping, .memory = 60});
}

TEST_CASE("Steps stored as bfloat16 converge as others do, and to the same accuracy") {
  const Stopping stopping{.max_iterations = 60, .relative_tolerance = 1e-12};
  auto f = family_map();
  const std::vector<double> z0(36);
  Broyden<StepsOnly>::Workspace<B> full;
  Broyden<CompactSteps>::Workspace<B> compact;
  const auto a =
      solve<KeepInverse::yes>(Broyden<StepsOnly>{.stopping = stopping, .memory = 60}, f, z0, full);
  const auto b = solve<KeepInverse::yes>(Broyden<CompactSteps>{.stopping = stopping, .memory = 60},
                                         f, z0, compact);
  for (Index s = 0; s < 3; ++s) {
    CHECK(b.sample(s).status == SolveStatus::converged);
    CHECK(b.sample(s).iterations <= a.sample(s).iterations + 1);
  }
  CHECK(relative_error(b.z, a.z) < 1e-10);
}

TEST_CASE("Steps and pairs give the same iterates and the same inverse to rounding") {
  for (const Index memory : {20, 4}) {
    auto f = family_map(), h = family_map();
    f.recorded_sample = h.recorded_sample = 1;
    Broyden<>::Workspace<B> pairs;
    Broyden<StepsOnly>::Workspace<B> alone;
    const std::vector<double> z0(36);
    solve<KeepInverse::yes>(
        Broyden<>{.stopping = steps(13), .memory = memory, .when_full = WhenFull::restart}, f, z0,
        pairs);
    solve<KeepInverse::yes>(Broyden<StepsOnly>{.stopping = steps(13), .memory = memory}, h, z0,
                            alone);
    REQUIRE(f.path.size() == h.path.size());
    for (std::size_t k = 0; k < f.path.size(); ++k)
      CHECK(relative_error(h.path[k], f.path[k]) < 1e-9);
    CHECK(error(dense(alone.inverse, 1), dense(pairs.inverse, 1)) < 1e-7);
    CHECK(alone.inverse.rank(1) == pairs.inverse.rank(1));
  }
}

TEST_CASE("The first step is a fixed-point step, and without memory all of them are") {
  const auto path_of = [](const auto& solver) {
    auto f = family_map();
    f.recorded_sample = 2;
    solve(solver, f, std::vector<double>(36));
    return f.path;
  };
  const auto picard = path_of(FixedPoint{.stopping = steps(10)});
  CHECK(path_of(Broyden<>{.stopping = steps(1)})[1] == picard[1]);
  CHECK(path_of(Broyden<StepsOnly>{.stopping = steps(1)})[1] == picard[1]);
  for (const WhenFull when_full : every_way)
    CHECK(path_of(Broyden<>{.stopping = steps(10), .memory = 0, .when_full = when_full}) == picard);
  for (const WhenFull when_full : {WhenFull::restart, WhenFull::freeze})
    CHECK(path_of(Broyden<StepsOnly>{.stopping = steps(10), .memory = 0, .when_full = when_full}) ==
          picard);
  CHECK(path_of(Anderson{.stopping = steps(10), .memory = 0}) == picard);
}

TEST_CASE("An update with a vanishing denominator is left out and counted") {
  // g(1) is orthogonal to the first step: dz . (dz + H g) = 0 with g(z1) = dz, H = -I.
  const auto check = [](auto solver) {
    auto f = column_map<B>(
        1, [](Index, const double* z, double* out) { out[0] = z[0] + (z[0] < 5 ? 1 : 2); });
    typename decltype(solver)::template Workspace<B> ws;
    const auto solved = solve<KeepInverse::yes>(solver, f, {0}, ws);
    CHECK(solved.sample().skipped_updates >= 1);
    CHECK(std::isfinite(to_dense<B>(ws.inverse, 0)[0]));
  };
  check(Broyden<>{.stopping = steps(4)});
  check(Broyden<StepsOnly>{.stopping = steps(4)});
}

namespace {

/// A batch that is worth sharing: dimension 600, samples that leave at different steps, one of them
/// with a NaN. Returns the results and H^T 1 of every sample.
template <class Solver, class Observer>
std::vector<float> solve_large_batch(Solver solver, int threads, Index count, Observer&& observer) {
  using F = Cpu<float>;
  constexpr Index dim = 600;
  const int before = num_threads();
  set_num_threads(threads);
  auto f = column_map<F>(dim, [](Index s, const float* z, float* out) {
    const float slope = 0.1f + 0.02f * static_cast<float>(s);
    for (Index i = 0; i < dim; ++i)
      out[i] = std::tanh(slope * z[(i + 1) % dim] + 0.3f * z[i] + static_cast<float>(i % 5) - 2);
    if (s == 5) out[7] = std::numeric_limits<float>::quiet_NaN();
  });
  solver.stopping = {.max_iterations = 25, .relative_tolerance = 1e-5};
  typename Solver::template Workspace<F> ws;
  std::vector<float> all =
      solve<KeepInverse::yes>(solver, f, std::vector<float>(static_cast<std::size_t>(count * dim)),
                              ws, observer)
          .z;
  for (Index s = 0; s < count; ++s) {
    const auto h = apply<F>(ws.inverse, s, std::vector<float>(dim, 1), true);
    all.insert(all.end(), h.begin(), h.end());
  }
  set_num_threads(before);
  return all;
}

}  // namespace

TEST_CASE("Bits do not depend on threads, on blocks, nor on who else is solved") {
  const auto check = [](auto solver) {
    const auto silent = [](const Observation&) { return false; };
    const std::vector<float> one = solve_large_batch(solver, 1, 24, NoObserver{});
    const auto same = [&](const std::vector<float>& x) {
      return x.size() == one.size() &&
             same_bits(x.data(), one.data(), static_cast<Index>(x.size()));
    };
    CHECK(same(solve_large_batch(solver, 2, 24, NoObserver{})));
    CHECK(same(solve_large_batch(solver, 5, 24, NoObserver{})));
    CHECK(same(solve_large_batch(solver, 2, 24, silent)));  // whole batch, primitive by primitive
    const std::vector<float> few = solve_large_batch(solver, 2, 3, NoObserver{});
    CHECK(same_bits(few.data(), one.data(), 3 * 600));
    CHECK(same_bits(few.data() + 3 * 600, one.data() + 24 * 600, 3 * 600));
  };
  check(Broyden<>{});
  check(Broyden<StepsOnly>{});
  check(Broyden<Pairs, Armijo>{});
  for (const WhenFull when_full : every_way) check(Broyden<>{.memory = 3, .when_full = when_full});
  for (const WhenFull when_full : {WhenFull::restart, WhenFull::freeze})
    check(Broyden<StepsOnly>{.memory = 3, .when_full = when_full});
}

TEST_CASE("J1: Broyden solves a slow linear map of three dimensions in six steps") {
  auto f = column_map<B>(3, [](Index, const double* z, double* out) {
    constexpr double d[]{.9, .99, .999};
    for (int i = 0; i < 3; ++i) out[i] = d[i] * z[i];
  });
  const auto solved = solve(
      Broyden<>{
          .stopping = {.max_iterations = 10, .relative_tolerance = 0, .absolute_tolerance = 1e-6}},
      f, {1, .4, -.2});
  CHECK(solved.sample().converged());
  CHECK(eigen(solved.z).norm() < 1e-2);
}
