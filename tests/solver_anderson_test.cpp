// SPDX-License-Identifier: MIT
// Anderson acceleration against dense least squares, iterate by iterate.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <Eigen/QR>
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

VectorXd eigen(const std::vector<double>& x) {
  return Eigen::Map<const VectorXd>(x.data(), static_cast<Index>(x.size()));
}
template <class H>
MatrixXd dense(const H& h, Index sample = 0) {
  const std::vector<double> columns = to_dense<B>(h, sample);
  return Eigen::Map<const MatrixXd>(columns.data(), h.dim(), h.dim());
}
double error(const MatrixXd& x, const MatrixXd& y) { return (x - y).norm() / y.norm(); }

constexpr Index n = 15;
const TanhFamily& family() {
  static const TanhFamily maps(n, 3, 0.8, 202);
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
Stopping steps(int count) {
  return {.max_iterations = count, .relative_tolerance = 0, .stall_window = 0, .trace = true};
}

/// Differences of neighbours among the last m + 1 of a list, oldest first.
MatrixXd differences(const std::vector<VectorXd>& list, Index memory) {
  const Index count = std::min(memory, static_cast<Index>(list.size()) - 1);
  MatrixXd d(n, count);
  for (Index j = 0; j < count; ++j) {
    const std::size_t i = list.size() - static_cast<std::size_t>(count - j);
    d.col(j) = list[i] - list[i - 1];
  }
  return d;
}

}  // namespace

TEST_CASE("Anderson is dense least squares over the last differences, at every step") {
  for (const Index memory : {1, 3, 6})
    for (const double beta : {1.0, 0.6})
      for (Index p = 0; p < 3; ++p) {
        CAPTURE(memory);
        CAPTURE(beta);
        auto f = family_map();
        f.recorded_sample = p;
        constexpr int count = 14;
        solve(
            Anderson{.stopping = steps(count), .memory = memory, .beta = beta, .regularization = 0},
            f, std::vector<double>(3 * n));
        REQUIRE(f.path.size() == count + 1);
        std::vector<VectorXd> zs{VectorXd::Zero(n)}, gs{residual(p, zs[0])};
        for (std::size_t k = 1; k <= count; ++k) {
          const VectorXd &z = zs.back(), &g = gs.back();
          VectorXd next = z + beta * g;
          if (k > 1) {
            const MatrixXd dz = differences(zs, memory), dg = differences(gs, memory);
            next -= (dz + beta * dg) * dg.colPivHouseholderQr().solve(g);
          }
          CAPTURE(k);
          CHECK(error(eigen(f.path[k]), next) < 1e-9);
          zs.push_back(next);
          gs.push_back(residual(p, next));
        }
      }
}

TEST_CASE("The ridge is relative to the largest diagonal entry of R") {
  constexpr double relative = 1e-2;
  auto f = family_map();
  f.recorded_sample = 0;
  solve(Anderson{.stopping = steps(3), .memory = 5, .regularization = relative}, f,
        std::vector<double>(3 * n));
  std::vector<VectorXd> zs, gs;
  for (std::size_t k = 0; k < 3; ++k) {
    zs.push_back(eigen(f.path[k]));
    gs.push_back(residual(0, zs.back()));
  }
  const MatrixXd dz = differences(zs, 5), dg = differences(gs, 5);
  // R of two columns by Gram and Schmidt, the oldest first.
  const double r00 = dg.col(0).norm(), r01 = dg.col(0).dot(dg.col(1)) / r00;
  const double r11 = (dg.col(1) - r01 / r00 * dg.col(0)).norm();
  const double lambda = relative * std::max(r00, r11) * std::max(r00, r11);
  const MatrixXd normal = dg.transpose() * dg + lambda * MatrixXd::Identity(2, 2);
  const VectorXd gamma = normal.colPivHouseholderQr().solve(dg.transpose() * gs[2]);
  CHECK(error(eigen(f.path[3]), zs[2] + gs[2] - (dz + dg) * gamma) < 1e-10);
}

TEST_CASE("The multisecant inverse maps the differences of residuals to those of the iterates") {
  for (const double beta : {1.0, 0.6})
    for (const int count : {1, 3, 5, 9}) {
      CAPTURE(count);
      auto f = family_map();
      f.recorded_sample = 1;
      Anderson::Workspace<B> ws;
      solve<KeepInverse::yes>(
          Anderson{.stopping = steps(count), .memory = 4, .beta = beta, .regularization = 0}, f,
          std::vector<double>(3 * n), ws);
      std::vector<VectorXd> zs, gs;
      for (const auto& z : f.path) {
        zs.push_back(eigen(z));
        gs.push_back(residual(1, zs.back()));
      }
      const MatrixXd dz = differences(zs, 4), dg = differences(gs, 4), h = dense(ws.inverse, 1);
      CHECK(ws.inverse.rank(1) == std::min(count, 4));
      for (Index j = 0; j < dz.cols(); ++j) CHECK(error(h * dg.col(j), dz.col(j)) < 1e-8);
      // On what is orthogonal to the differences it is -beta I.
      VectorXd x = eigen(Noise(3).vector(n));
      x -= dg * dg.colPivHouseholderQr().solve(x);
      CHECK(error(h * x, -beta * x) < 1e-8);
    }
}

TEST_CASE("Apply, apply_transpose and to_dense agree, for one sample of a batch") {
  for (const double regularization : {0.0, 1e-12, 1e-3}) {
    auto f = family_map();
    Anderson::Workspace<B> ws;
    solve<KeepInverse::yes>(
        Anderson{.stopping = steps(8), .memory = 4, .beta = 0.7, .regularization = regularization},
        f, std::vector<double>(3 * n), ws);
    CHECK(ws.inverse.dim() == n);
    CHECK(ws.inverse.memory() == 4);
    Noise random(4);
    for (Index s = 0; s < 3; ++s) {
      const MatrixXd h = dense(ws.inverse, s);
      const std::vector<double> x = random.vector(n);
      CHECK(error(eigen(apply<B>(ws.inverse, s, x)), h * eigen(x)) < 1e-11);
      CHECK(error(eigen(apply<B>(ws.inverse, s, x, true)), h.transpose() * eigen(x)) < 1e-11);
    }
  }
}

TEST_CASE("Differences that depend on each other make room instead of dividing by rounding noise") {
  // Everything happens in one dimension: the second difference is a multiple of the first.
  auto f = column_map<B>(4, [](Index, const double* z, double* out) {
    for (int i = 0; i < 4; ++i) out[i] = 0.25 * std::cos(z[0]) * (i + 1);
  });
  Anderson::Workspace<B> ws;
  const auto solved = solve<KeepInverse::yes>(
      Anderson{.stopping = {.max_iterations = 30, .relative_tolerance = 1e-13}, .memory = 3}, f,
      std::vector<double>(4), ws);
  CHECK(solved.sample().converged());
  CHECK(ws.inverse.rank(0) >= 1);
  CHECK(std::isfinite(dense(ws.inverse).norm()));
  // More memory than dimensions.
  auto scalar =
      column_map<B>(1, [](Index, const double* z, double* out) { out[0] = std::cos(z[0]); });
  const auto cosine =
      solve(Anderson{.stopping = {.relative_tolerance = 1e-14}, .memory = 6}, scalar, {0.5});
  CHECK(cosine.sample().converged());
  CHECK(cosine.z[0] == doctest::Approx(0.73908513321516).epsilon(1e-13));
  CHECK(cosine.sample().iterations <= 8);
}

TEST_CASE_TEMPLATE("J7: a symmetric contraction of 200 dimensions is solved to its residual", S,
                   float, double) {
  constexpr Index dim = 200;
  const std::vector<double> half = Noise(77).vector(dim * dim);
  MatrixXd m = Eigen::Map<const MatrixXd>(half.data(), dim, dim);
  m = (m + m.transpose()).eval();
  // The largest eigenvalue, by the growth of m^2 x: its sign does not matter.
  VectorXd x = VectorXd::Ones(dim);
  double growth = 0;
  for (int i = 0; i < 500; ++i) {
    x = (m * (m * x)).eval();
    growth = x.norm();
    x /= growth;
  }
  m *= 0.499 / std::sqrt(growth);
  const std::vector<double> b = Noise(78).vector(dim);
  const std::vector<double> entries(m.data(), m.data() + dim * dim);
  const VectorXd exact = (MatrixXd::Identity(dim, dim) - m).colPivHouseholderQr().solve(eigen(b));
  const double tolerance = std::is_same_v<S, float> ? 3e-6 : 1e-10;
  const auto check = [&](const auto& solver) {
    DenseAffine<Cpu<S>> f(entries, b);
    const auto solved = solve(solver, f, std::vector<S>(dim));
    CHECK(solved.sample().converged());
    CHECK(relative_error(solved.z, exact) < 10 * tolerance);
    MESSAGE(std::string(std::is_same_v<S, float> ? "float " : "double ")
            << solved.sample().iterations << " steps");
  };
  const Stopping stopping{.max_iterations = 100, .relative_tolerance = tolerance};
  check(Anderson{.stopping = stopping, .memory = 5});
  check(Anderson{.stopping = stopping, .memory = 10, .beta = 0.9});
  check(Broyden<>{.stopping = stopping, .memory = 100});
  check(Broyden<StepsOnly>{.stopping = stopping, .memory = 100});
  check(FixedPoint{.stopping = stopping});
}
