// SPDX-License-Identifier: MIT
// Gmres on (I - A) z = b against dense solves.
#include <cmath>
#include <type_traits>
#include <vector>

#include <Eigen/QR>
#include <doctest/doctest.h>

#include <deq/backend/cpu/cpu.hpp>
#include <deq/solver/gmres.hpp>

#include "support/maps.hpp"

using namespace deq;
using namespace deq_test;
using Eigen::MatrixXd;
using Eigen::VectorXd;

namespace {

using B = Cpu<double>;
using Rows = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

VectorXd exact(const std::vector<double>& a, const std::vector<double>& b) {
  const auto n = static_cast<Index>(b.size());
  const MatrixXd m = MatrixXd::Identity(n, n) - Eigen::Map<const Rows>(a.data(), n, n);
  return m.colPivHouseholderQr().solve(Eigen::Map<const VectorXd>(b.data(), n));
}

}  // namespace

TEST_CASE_TEMPLATE("Gmres solves random systems, Picard's contraction or not", S, float, double) {
  const double tolerance = std::is_same_v<S, float> ? 1e-5 : 1e-12;
  for (const Index n : {1, 2, 7, 30})
    for (const double scale : {0.1, 1.0, 5.0}) {
      CAPTURE(n);
      CAPTURE(scale);
      const auto a = Noise(static_cast<std::uint32_t>(n)).vector(n * n, scale),
                 b = Noise(2).vector(n);
      DenseAffine<Cpu<S>> f(a, b);
      const auto solved =
          solve(Gmres{.stopping = {.max_iterations = 200, .relative_tolerance = tolerance},
                      .restart = 30},
                f, std::vector<S>(static_cast<std::size_t>(n)));
      CHECK(solved.sample().converged());
      CHECK(solved.sample().relative <= tolerance);
      CHECK(relative_error(solved.z, exact(a, b)) < 1e4 * tolerance);
    }
}

TEST_CASE("One cycle of Gmres minimises the residual over the Krylov space") {
  constexpr Index n = 10, m = 4;
  const auto a = Noise(5).vector(n * n, 0.4), b = Noise(6).vector(n);
  const MatrixXd system = MatrixXd::Identity(n, n) - Eigen::Map<const Rows>(a.data(), n, n);
  const VectorXd rhs = Eigen::Map<const VectorXd>(b.data(), n);
  MatrixXd krylov(n, m);
  krylov.col(0) = rhs;
  for (Index j = 1; j < m; ++j) krylov.col(j) = system * krylov.col(j - 1);
  const VectorXd y = (system * krylov).colPivHouseholderQr().solve(rhs);
  DenseAffine<B> f(a, b);
  const auto solved = solve(Gmres{.stopping = {.max_iterations = m, .relative_tolerance = 0}}, f,
                            std::vector<double>(n));
  CHECK(relative_error(solved.z, VectorXd(krylov * y)) < 1e-10);
  CHECK(solved.sample().absolute ==
        doctest::Approx((rhs - system * krylov * y).norm()).epsilon(1e-10));
  CHECK(solved.sample().status == SolveStatus::budget_exhausted);
}

TEST_CASE("A short restart needs more products and arrives all the same") {
  constexpr Index n = 40;
  const auto a = Noise(7).vector(n * n, 0.13), b = Noise(8).vector(n);
  int products[2] = {};
  for (const Index restart : {40, 4}) {
    DenseAffine<B> f(a, b);
    const auto solved =
        solve(Gmres{.stopping = {.max_iterations = 400, .relative_tolerance = 1e-10, .trace = true},
                    .restart = restart},
              f, std::vector<double>(n));
    CHECK(solved.sample().converged());
    CHECK(relative_error(solved.z, exact(a, b)) < 1e-8);
    CHECK(solved.sample().evaluations == f.products);
    const auto& trace = solved.report.relative_trace[0];
    if (restart == 4) {
      CHECK(trace.size() > 5);
      for (std::size_t k = 1; k < trace.size(); ++k) CHECK(trace[k] < trace[k - 1]);
    }
    products[restart == 4] = solved.sample().evaluations;
  }
  CHECK(products[1] > products[0]);
}

TEST_CASE("Counts: one product a Krylov vector, one evaluation at the start and after each cycle") {
  // I - A has 3 different eigenvalues: 3 products, then nothing is left (a happy breakdown).
  std::vector<double> a(36);
  for (std::size_t i = 0; i < 6; ++i) a[i * 7] = i < 2 ? 0.5 : i < 4 ? -1 : 3;
  const std::vector<double> b{1, 2, 3, 4, 5, 6};
  DenseAffine<B> f(a, b);
  const auto solved =
      solve(Gmres{.stopping = {.relative_tolerance = 1e-12}}, f, std::vector<double>(6));
  CHECK(solved.sample().converged());
  CHECK(relative_error(solved.z, exact(a, b)) < 1e-13);
  CHECK(solved.sample().evaluations == 5);
  CHECK(solved.sample().iterations == 3);
  CHECK(solved.sample().best_iteration == 3);
  CHECK(f.products == 5);
  // Started at the solution nothing is to be done.
  const auto again = solve(Gmres{.stopping = {.relative_tolerance = 1e-12}}, f, solved.z);
  CHECK(again.sample().evaluations == 1);
  CHECK(again.sample().iterations == 0);
}

TEST_CASE("With A = 0 the first Krylov vector is the solution: the happiest breakdown") {
  DenseAffine<B> f(std::vector<double>(9), {1, -2, 3});
  const auto solved =
      solve(Gmres{.stopping = {.relative_tolerance = 1e-14}}, f, std::vector<double>(3));
  CHECK(solved.sample().converged());
  CHECK(relative_error(solved.z, std::vector<double>{1, -2, 3}) < 1e-15);
}

TEST_CASE("A right-hand side of zero has the solution zero, from any start") {
  const auto a = Noise(9).vector(25, 0.5);
  DenseAffine<B> f(a, std::vector<double>(5));
  const auto from_zero = solve(Gmres{}, f, std::vector<double>(5));
  CHECK(from_zero.sample().converged());
  CHECK(from_zero.sample().evaluations == 1);
  const auto from_far =
      solve(Gmres{.stopping = {.relative_tolerance = 0, .absolute_tolerance = 1e-12}}, f,
            std::vector<double>(5, 3.0));
  CHECK(from_far.sample().converged());
  for (const double zi : from_far.z) CHECK(std::abs(zi) < 1e-11);
}

TEST_CASE("A singular system ends with a status and finite numbers") {
  const Stopping stopping{.max_iterations = 60, .relative_tolerance = 1e-10};
  const auto finite = [](const std::vector<double>& z) {
    for (const double zi : z)
      if (!std::isfinite(zi)) return false;
    return true;
  };
  // I - A = diag(0, 1): without a solution if b_0 is not 0, with one if it is.
  DenseAffine<B> impossible({1, 0, 0, 0}, {1, 1}), possible({1, 0, 0, 0}, {0, 1});
  const auto none = solve(Gmres{.stopping = stopping}, impossible, {0, 0});
  CHECK_FALSE(none.sample().converged());
  CHECK(finite(none.z));
  const auto one = solve(Gmres{.stopping = stopping}, possible, {0, 0});
  CHECK(one.sample().converged());
  CHECK(one.z[1] == doctest::Approx(1).epsilon(1e-12));
  // I - A = 0: every product vanishes.
  DenseAffine<B> zero({1, 0, 0, 1}, {1, 1});
  const auto nothing = solve(Gmres{.stopping = stopping}, zero, {0, 0});
  CHECK_FALSE(nothing.sample().converged());
  CHECK(finite(nothing.z));
  // A nilpotent I - A.
  DenseAffine<B> nilpotent({1, 1, 0, 1}, {1, 1});
  const auto shifted = solve(Gmres{.stopping = stopping}, nilpotent, {0, 0});
  CHECK_FALSE(shifted.sample().converged());
  CHECK(finite(shifted.z));
}

TEST_CASE("Each sample spends a budget of its own, on products, whatever the cycle") {
  constexpr Index n = 12;
  const auto a = Noise(10).vector(n * n, 0.3);
  std::vector<double> z0 = Noise(11).vector(n);
  for (std::size_t i = 0; i < n; ++i) z0.push_back(1e-9 * z0[i]);
  for (const int budget : {1, 4, 7, 12, 40})
    for (const Index restart : {1, 3, 5, 50}) {
      CAPTURE(budget);
      CAPTURE(restart);
      DenseAffine<B> f(a, std::vector<double>(n));
      const auto solved = solve(Gmres{.stopping = {.max_iterations = budget,
                                                   .relative_tolerance = 0,
                                                   .absolute_tolerance = 1e-10,
                                                   .stall_window = 0,
                                                   .trace = true},
                                      .restart = restart},
                                f, z0);
      for (Index s = 0; s < 2; ++s) {
        const SampleReport& sample = solved.sample(s);
        const auto cycles =
            static_cast<int>(solved.report.relative_trace[static_cast<std::size_t>(s)].size());
        CHECK(sample.evaluations == sample.iterations + cycles + 1);
        CHECK(sample.iterations <= budget);
        CHECK(sample.best_iteration <= sample.iterations);
        CHECK(sample.converged() == (sample.absolute <= 1e-10));
        if (sample.converged()) continue;
        CHECK(sample.status == SolveStatus::budget_exhausted);
        CHECK(sample.iterations == budget);
      }
      CHECK(solved.sample(1).iterations <= solved.sample(0).iterations);
      CHECK(f.products == solved.sample(0).evaluations + solved.sample(1).evaluations);
    }
}

TEST_CASE("Samples leave a cycle one by one") {
  constexpr Index n = 12;
  const auto a = Noise(10).vector(n * n, 0.3);
  DenseAffine<B> f(a, std::vector<double>(n));
  std::vector<double> z0 = Noise(11).vector(n);
  const auto hard = z0;
  const std::vector<double> easy(n, 1e-14);
  z0.insert(z0.end(), easy.begin(), easy.end());
  z0.insert(z0.end(), hard.begin(), hard.end());
  const auto solved =
      solve(Gmres{.stopping = {.relative_tolerance = 0, .absolute_tolerance = 1e-10}, .restart = 5},
            f, z0);
  CHECK(solved.report.all_converged());
  CHECK(solved.sample(1).evaluations == 1);
  CHECK(solved.sample(0).evaluations == solved.sample(2).evaluations);
  CHECK(f.products == 2 * solved.sample(0).evaluations + 1);
}
