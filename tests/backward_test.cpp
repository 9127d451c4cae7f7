// SPDX-License-Identifier: MIT
// The backward policies against dense linear algebra, against published numbers, and against each
// other. What they are to the gradients of a layer is in equilibrium_test.cpp.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <Eigen/Dense>
#include <doctest/doctest.h>

#include <deq/backend/cpu/cpu.hpp>
#include <deq/backward/certificate.hpp>
#include <deq/backward/exact.hpp>
#include <deq/backward/gdeq.hpp>
#include <deq/backward/implicit.hpp>
#include <deq/backward/jfb.hpp>
#include <deq/backward/npg.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/fixed_point.hpp>
#include <deq/solver/gmres.hpp>

#include "support/maps.hpp"
#include "support/naive_backend.hpp"

using namespace deq;
using namespace deq_test;

namespace {

using Eigen::MatrixXd;
using Eigen::VectorXd;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// J = df/dz of every sample, as the matrix that it is.
template <class B>
struct DenseJacobian {
  using S = typename B::Scalar;

  void vjp(Samples a, BatchView<const S> w, BatchView<S> out) {
    for (Index j = 0; j < a.count; ++j) {
      const MatrixXd& J = matrices[at(a[j])];
      for (Index i = 0; i < w.dim; ++i) {
        double sum = 0;
        for (Index k = 0; k < w.dim; ++k) sum += J(k, i) * static_cast<double>(w.col(j)[k]);
        out.col(j)[i] = static_cast<S>(sum);
      }
    }
  }

  std::vector<MatrixXd> matrices;
};

/// An inverse that anybody could write: one dense H for all samples.
template <class B>
struct DenseInverse {
  using S = typename B::Scalar;

  Index dim() const { return H.rows(); }
  void apply(Samples a, BatchView<const S> x, BatchView<S> y, Array<B>&) const {
    product(H, a, x, y);
  }
  void apply_transpose(Samples a, BatchView<const S> x, BatchView<S> y, Array<B>&) const {
    product(H.transpose(), a, x, y);
  }
  static void product(const MatrixXd& m, Samples a, BatchView<const S> x, BatchView<S> y) {
    for (Index j = 0; j < a.count; ++j)
      for (Index i = 0; i < x.dim; ++i) {
        double sum = 0;
        for (Index k = 0; k < x.dim; ++k) sum += m(i, k) * static_cast<double>(x.col(a[j])[k]);
        y.col(a[j])[i] = static_cast<S>(sum);
      }
  }

  MatrixXd H;
};

/// The adjoints of a batch, one vector a sample, and what was reported.
struct Adjoints {
  std::vector<VectorXd> w;
  AdjointReport report;
};

/// w from h by a policy, certified; w is full of NaNs before.
template <class B, class Policy, class Inverse = NoInverse>
Adjoints adjoints(const Policy& policy, DenseJacobian<B> jacobian, const std::vector<VectorXd>& h,
                  const Inverse* inverse = nullptr) {
  using S = typename B::Scalar;
  const Index dim = h[0].size(), count = static_cast<Index>(h.size());
  std::vector<S> hs, ws(at(dim * count), std::numeric_limits<S>::quiet_NaN());
  for (const VectorXd& hi : h)
    for (const double x : hi) hs.push_back(static_cast<S>(x));
  const BatchView<const S> hv{hs.data(), dim, count};
  const BatchView<S> wv{ws.data(), dim, count};
  const deq_test::Everybody everybody(count);
  typename Policy::template Workspace<B> workspace;
  policy.template adjoint<B>(everybody, jacobian, inverse, hv, wv, workspace);
  CertificateWorkspace<B> scratch;
  certify<B>(everybody, jacobian, hv, BatchView<const S>(wv), scratch, workspace.report);
  Adjoints out{{}, workspace.report};
  for (Index s = 0; s < count; ++s)
    out.w.push_back(Eigen::Map<const Eigen::Matrix<S, Eigen::Dynamic, 1>>(wv.col(s), dim)
                        .template cast<double>());
  return out;
}

MatrixXd identity(Index n) { return MatrixXd::Identity(n, n); }
VectorXd exact(const MatrixXd& J, const VectorXd& h) {
  return (identity(h.size()) - J.transpose()).fullPivLu().solve(h);
}
double error(const VectorXd& w, const VectorXd& expected) {
  return (w - expected).norm() / expected.norm();
}
/// ||h - (I - J^T) w|| / ||h||
double residual(const MatrixXd& J, const VectorXd& w, const VectorXd& h) {
  return (h - w + J.transpose() * w).norm() / h.norm();
}

/// Five tanh maps of eight dimensions at their fixed points, and the inverses that `solver` has
/// left behind there.
template <class B, class Solver = Broyden<>>
struct Family {
  using S = typename B::Scalar;
  static constexpr Index n = 8, count = 5;

  explicit Family(const Solver& solver = {}, double gain = 0.5) : maps(n, count, gain, 70) {
    auto f = column_map<B>(n, [&](Index s, const S* z, S* out) { maps.evaluate(s, z, out); });
    const auto solved =
        solve<KeepInverse::yes>(solver, f, std::vector<S>(at(n * count)), workspace);
    Noise random(71);
    for (Index s = 0; s < count; ++s) {
      MatrixXd J(n, n);
      std::vector<double> z(solved.col(s, n), solved.col(s + 1, n)), fz(at(n));
      maps.evaluate(s, z.data(), fz.data());
      for (Index i = 0; i < n; ++i)
        for (Index k = 0; k < n; ++k)
          J(i, k) = (1 - fz[at(i)] * fz[at(i)]) * maps.W[at(s)][at(i * n + k)];
      jacobian.matrices.push_back(J);
      VectorXd cotangent(n);
      for (double& x : cotangent) x = random();
      h.push_back(cotangent);
    }
  }

  const auto& inverse() const { return workspace.inverse; }
  /// H of one sample.
  MatrixXd H(Index s) const {
    const auto dense = to_dense<B>(workspace.inverse, s);
    return Eigen::Map<const Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic>>(dense.data(), n, n)
        .template cast<double>();
  }
  template <class Policy>
  Adjoints adjoints(const Policy& policy) const {
    return ::adjoints<B>(policy, jacobian, h, &workspace.inverse);
  }

  TanhFamily maps;
  typename Solver::template Workspace<B> workspace;
  DenseJacobian<B> jacobian;
  std::vector<VectorXd> h;
};

template <class B>
double rounding() {
  return 200 * static_cast<double>(std::numeric_limits<typename B::Scalar>::epsilon());
}

#define ALL_BACKENDS Cpu<float>, Cpu<double>, NaiveBackend<float>, NaiveBackend<double>

/// The worked example at its solution, its loss |z - t|^2 / 2, and the inverse after a solve to
/// ||g|| <= tolerance.
struct WorkedExample {
  using B = Cpu<double>;

  explicit WorkedExample(double tolerance = 1e-10, Index memory = 20) {
    auto f = case_a<B>();
    const Broyden<> solver{.stopping = {.relative_tolerance = 0, .absolute_tolerance = tolerance},
                           .memory = memory};
    report = solve<KeepInverse::yes>(solver, f, std::vector<double>(3), workspace).sample();
    z = VectorXd::Map(CaseA::solution, 3);
    h = z - VectorXd::Map(CaseA::t, 3);
    J = (1 - z.array().square()).matrix().asDiagonal() *
        Eigen::Map<const Eigen::Matrix<double, 3, 3, Eigen::RowMajor>>(&CaseA::W[0][0]);
  }
  template <class Policy>
  Adjoints adjoint(const Policy& policy) const {
    return adjoints<B>(policy, {{J}}, {h}, &workspace.inverse);
  }

  Broyden<>::Workspace<B> workspace;
  SampleReport report;
  VectorXd z, h;
  MatrixXd J;
};

/// A printed number: its value, and half a unit of its last digit.
struct Printed {
  double value, half_unit;
  bool is(double x) const { return std::abs(x - value) <= half_unit; }
};
constexpr Printed not_published{0, std::numeric_limits<double>::infinity()};

}  // namespace

TEST_CASE(
    "Case A: adjoint, gradient, error and certificate of every policy are the published ones") {
  struct Row {
    const char* name;
    Adjoints computed;
    double w[3], db[3];
    Printed error, residual;
  };
  const WorkedExample at_1e3(1e-3), at_1e6(1e-6), converged;
  CHECK(at_1e3.report.iterations == 5);
  CHECK(at_1e6.report.iterations == 7);
  CHECK(converged.report.iterations == 9);
  Implicit<> implicit;
  implicit.solver.stopping.relative_tolerance = 1e-15;
  const double e[] = {-.74681561315631, -.048085540581972, 1.2500768296163};
  const double edb[] = {-.44124156879578, -.043380208428535, 1.2488428627699};
  const Row rows[] = {
      {"Exact",
       converged.adjoint(Exact{}),
       {e[0], e[1], e[2]},
       {edb[0], edb[1], edb[2]},
       {0, 1e-13},
       {0, 1e-13}},
      {"Implicit",
       converged.adjoint(implicit),
       {e[0], e[1], e[2]},
       {edb[0], edb[1], edb[2]},
       {0, 1e-13},
       {0, 1e-13}},
      {"Jfb",
       converged.adjoint(Jfb{}),
       {-.36033654912075, -.31281523164947, 1.0314183514133},
       {-.21289788460170, -.28220520731054, 1.0304002251508},
       {.3548, 5e-5},
       {.3708, 5e-5}},
      {"Npg 5, 1/2",
       converged.adjoint(Npg{5, 0.5}),
       {-.64018659936203, -.14141568521969, 1.2123087641840},
       {-.37824187717593, -.12757768397002, 1.2111120786786},
       {.1007, 5e-5},
       {.1063, 5e-5}},
      {"Npg 5, 1",
       converged.adjoint(Npg{5, 1}),
       {-.75321114550097, -.043196178606564, 1.2527734749317},
       {-.44502024545348, -.038969286995424, 1.2515368461921},
       {.00583, 5e-6},
       {.00613, 5e-6}},
      {"Npg 10, 1/2",
       converged.adjoint(Npg{10, 0.5}),
       {-.74407809091349, -.058737947876796, 1.2594023905713},
       {-.43962415669599, -.052990241779982, 1.2581592183443},
       {.0099, 5e-5},
       not_published},
      {"Gdeq at 1e-3",
       at_1e3.adjoint(Gdeq{}),
       {-.79716290811157, -.12278854414732, 1.1124308618213},
       {-.47098829478721, -.11077327140925, 1.1113327670723},
       {.1129, 5e-5},
       not_published},
      {"Gdeq at 1e-6",
       at_1e6.adjoint(Gdeq{}),
       {-.86792624013248, -.040095069128203, 1.2255397574856},
       {-.51279744162891, -.036171631527629, 1.2243300114973},
       {.0850, 5e-5},
       not_published},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    const VectorXd w = row.computed.w[0];
    const VectorXd db = (1 - converged.z.array().square()) * w.array();
    // The inverse of a solve carries the rounding of late differences; it was published to the
    // digits of 40-digit arithmetic.
    const double tolerance = row.name[0] == 'G' ? 1e-8 : 1e-13;
    CHECK(relative_error(w, row.w) < tolerance);
    CHECK(relative_error(db, row.db) < tolerance);
    CHECK(row.error.is(error(w, exact(converged.J, converged.h))));
    CHECK(row.residual.is(row.computed.report.samples[0].residual));
  }
  const Adjoints gdeq = converged.adjoint(Gdeq{});
  CHECK(Printed{.0835, 5e-5}.is(error(gdeq.w[0], exact(converged.J, converged.h))));
  CHECK(Printed{.0914, 5e-5}.is(gdeq.report.samples[0].residual));
}

TEST_CASE("Case A: a tighter solve does not make Gdeq exact, refinement does") {
  const VectorXd w = exact(WorkedExample().J, WorkedExample().h);
  for (const double tolerance : {1e-8, 1e-10, 1e-12})
    CHECK(error(WorkedExample(tolerance).adjoint(Gdeq{}).w[0], w) > 0.08);
  const WorkedExample example(1e-12);
  const Printed neumann[] = {
      {.0152, 5e-5}, {.00425, 5e-6}, {.00157, 5e-6}, {5.5e-4, 5e-6}, {1.8e-4, 5e-6}};
  const Printed minimal_residual[] = {
      {1.7e-6, 5e-8}, {2.0e-7, 5e-9}, {5.3e-10, 5e-12}, {5.8e-11, 5e-13}};
  for (int r = 1; r <= 5; ++r) {
    CAPTURE(r);
    const Gdeq policy{.refinements = r, .refinement = Gdeq::Refinement::neumann};
    CHECK(neumann[r - 1].is(error(example.adjoint(policy).w[0], w)));
    if (r == 5) continue;  // the last of these is within 5000 roundings of w itself
    const Gdeq best{.refinements = r, .refinement = Gdeq::Refinement::minimal_residual};
    CHECK(minimal_residual[r - 1].is(error(example.adjoint(best).w[0], w)));
  }
}

TEST_CASE_TEMPLATE("Every policy is its formula in dense linear algebra", B, ALL_BACKENDS) {
  const Family<B> family;
  for (Index s = 0; s < family.count; ++s) {
    CAPTURE(s);
    const MatrixXd J = family.jacobian.matrices[at(s)], I = identity(family.n), H = family.H(s);
    const VectorXd h = family.h[at(s)], w = exact(J, h);
    const auto check = [&](const auto& policy, const VectorXd& expected, int vjps) {
      const Adjoints computed = family.adjoints(policy);
      const AdjointSample& report = computed.report.samples[at(s)];
      CHECK(error(computed.w[at(s)], expected) < rounding<B>());
      CHECK(std::abs(report.residual - residual(J, computed.w[at(s)], h)) < rounding<B>());
      CHECK(report.vjps == vjps);
      CHECK(!report.fell_back);
      CHECK(report.status == SolveStatus::converged);
    };
    check(Exact{}, w, static_cast<int>(family.n));
    check(Jfb{}, h, 0);
    for (const int k : {1, 2, 5, 30})
      for (const double lambda : {0.25, 0.5, 1.0}) {
        const MatrixXd M = lambda * J + (1 - lambda) * I;
        VectorXd sum = VectorXd::Zero(family.n), power = h;
        for (int i = 0; i < k; ++i, power = M.transpose() * power) sum += lambda * power;
        check(Npg{k, lambda}, sum, k - 1);
      }
    const VectorXd start = -H.transpose() * h;
    check(Gdeq{}, start, 0);
    VectorXd preconditioned = start, neumann = start, minimal = start;
    for (int r = 1; r <= 3; ++r) {
      const auto rho = [&](const VectorXd& v) -> VectorXd { return h - (I - J.transpose()) * v; };
      preconditioned -= H.transpose() * rho(preconditioned);
      neumann += rho(neumann);
      const VectorXd p = -H.transpose() * rho(minimal), q = (I - J.transpose()) * p;
      minimal += rho(minimal).dot(q) / q.squaredNorm() * p;
      check(Gdeq{r}, preconditioned, r);
      check(Gdeq{r, Gdeq::Refinement::neumann}, neumann, r);
      check(Gdeq{r, Gdeq::Refinement::minimal_residual}, minimal, r + 1);
    }
  }
}

TEST_CASE_TEMPLATE("Implicit is Exact, whatever its linear solver", Solver, Broyden<>,
                   Broyden<StepsOnly>, Anderson, FixedPoint, Gmres) {
  const Family<Cpu<double>> family;
  Implicit<Solver> implicit;
  implicit.solver.stopping = {.max_iterations = 200, .relative_tolerance = 1e-12};
  if constexpr (requires { implicit.solver.memory; }) implicit.solver.memory = 60;
  const Adjoints computed = family.adjoints(implicit), oracle = family.adjoints(Exact{});
  for (Index s = 0; s < family.count; ++s) {
    CHECK(error(computed.w[at(s)], oracle.w[at(s)]) < 1e-11);
    CHECK(computed.report.samples[at(s)].status == SolveStatus::converged);
    CHECK(computed.report.samples[at(s)].residual < 1e-11);
    CHECK(computed.report.samples[at(s)].vjps > 5);
  }

  // A budget that is too small is reported, and what it bought is returned.
  implicit.solver.stopping.max_iterations = 3;
  const Adjoints cut = family.adjoints(implicit);
  for (Index s = 0; s < family.count; ++s) {
    CHECK(cut.report.samples[at(s)].status == SolveStatus::budget_exhausted);
    CHECK(cut.report.samples[at(s)].residual > 1e-11);
    CHECK(cut.report.samples[at(s)].residual < 1);
  }
}

TEST_CASE_TEMPLATE("Implicit and its certificate know no size of h", Solver, Broyden<>,
                   Broyden<StepsOnly>, Anderson, FixedPoint, Gmres) {
  const auto check = [](auto scalar, const std::vector<int>& exponents) {
    using B = Cpu<decltype(scalar)>;
    const Family<B> family;
    Implicit<Solver> implicit;
    implicit.solver.stopping.max_iterations = 60;
    const auto of = [&](const std::vector<VectorXd>& h) {
      return adjoints<B>(implicit, family.jacobian, h);
    };
    for (const Scope scope : {Scope::sample, Scope::batch}) {
      if (std::is_same_v<Solver, Gmres> && scope == Scope::batch) continue;
      implicit.solver.stopping.scope = scope;
      for (const bool absolute : {false, true}) {
        (absolute ? implicit.solver.stopping.absolute_tolerance
                  : implicit.solver.stopping.relative_tolerance) = 1e-4;
        (absolute ? implicit.solver.stopping.relative_tolerance
                  : implicit.solver.stopping.absolute_tolerance) = 0;
        const Adjoints one = of(family.h);
        CHECK(one.report.worst_residual() < 1e-3);
        for (const int exponent : exponents) {
          CAPTURE(exponent);
          std::vector<VectorXd> scaled = family.h;
          for (VectorXd& h : scaled) h *= std::ldexp(1, exponent);
          const Adjoints now = of(scaled);
          for (Index s = 0; s < family.count; ++s) {
            const AdjointSample &a = one.report.samples[at(s)], &b = now.report.samples[at(s)];
            CHECK(a.status == SolveStatus::converged);
            CHECK(a.status == b.status);
            CHECK(a.vjps == b.vjps);
            CHECK(b.residual == doctest::Approx(a.residual));
            CHECK(now.w[at(s)] == one.w[at(s)] * std::ldexp(1, exponent));
          }
        }
      }
    }
    // The cotangent of one sample only is small, or 0.
    implicit.solver.stopping.scope = Scope::sample;
    const Adjoints all = of(family.h);
    for (const double factor : {std::ldexp(1, exponents.front()), 0.0}) {
      std::vector<VectorXd> mixed = family.h;
      mixed[2] *= factor;
      const Adjoints now = of(mixed);
      for (Index s = 0; s < family.count; ++s)
        CHECK(now.w[at(s)] == all.w[at(s)] * (s == 2 ? factor : 1));
      CHECK(now.report.samples[2].status == SolveStatus::converged);
      CHECK(now.report.samples[2].vjps <= all.report.samples[2].vjps);
      if (factor == 0) CHECK(now.report.samples[2].residual == 0);
    }
  };
  check(double{}, {-53, -500, -900, 500, 900});
  check(float{}, {-53, -75, -110, 75, 110});
}

TEST_CASE("The worst residual of a report is a NaN if there is one") {
  AdjointReport report;
  report.reset(3);
  CHECK(report.worst_residual() == -1);
  for (const std::size_t s : {0, 1, 2}) {
    report.reset(3);
    for (AdjointSample& sample : report.samples) sample.residual = 0.5;
    report.samples[s].residual = 2;
    CHECK(report.worst_residual() == 2);
    report.samples[s].residual = std::nan("");
    CHECK(std::isnan(report.worst_residual()));
  }
}

TEST_CASE("The certificate of a cotangent 0 is what w leaves") {
  using B = Cpu<float>;
  DenseJacobian<B> jacobian{{MatrixXd::Constant(2, 2, 0.25)}};
  const float h[2] = {}, w[2] = {3, 3};
  const deq_test::Everybody everybody(1);
  CertificateWorkspace<B> scratch;
  AdjointReport report;
  report.reset(1);
  certify<B>(everybody, jacobian, {h, 2, 1}, {w, 2, 1}, scratch, report);
  CHECK(report.samples[0].residual == doctest::Approx(1.5 * std::sqrt(2)));
}

TEST_CASE("Implicit's samples leave its solve one by one, each with the bits that it has alone") {
  using B = Cpu<double>;
  // Spread from nearly 0 to a slow contraction, so that everybody needs another number of steps.
  Family<B> family;
  for (Index s = 0; s < family.count; ++s)
    family.jacobian.matrices[at(s)] *= 0.2 * static_cast<double>(s * s);
  const Implicit<> implicit{.solver = {.stopping = {.max_iterations = 60}, .memory = 60}};
  const Adjoints together = family.adjoints(implicit);
  for (Index s = 0; s < family.count; ++s) {
    const Adjoints alone =
        adjoints<B>(implicit, {{family.jacobian.matrices[at(s)]}}, {family.h[at(s)]});
    CHECK(alone.report.samples[0].vjps == together.report.samples[at(s)].vjps);
    CHECK(same_bits(alone.w[0].data(), together.w[at(s)].data(), family.n));
    if (s > 0) CHECK(together.report.samples[at(s)].vjps > together.report.samples[at(s - 1)].vjps);
  }
}

TEST_CASE_TEMPLATE("Identities: without memory Gdeq is Jfb, one undamped term of Npg is Jfb", B,
                   ALL_BACKENDS) {
  const Family<B> family(Broyden<>{.memory = 0});
  const Adjoints jfb = family.adjoints(Jfb{}), gdeq = family.adjoints(Gdeq{}),
                 npg = family.adjoints(Npg{1, 1});
  const Adjoints no_pairs =
      Family<B, Broyden<StepsOnly>>(Broyden<StepsOnly>{.memory = 0}).adjoints(Gdeq{});
  for (Index s = 0; s < family.count; ++s) {
    CHECK(gdeq.w[at(s)] == jfb.w[at(s)]);
    CHECK(npg.w[at(s)] == jfb.w[at(s)]);
    CHECK(no_pairs.w[at(s)] == jfb.w[at(s)]);
    CHECK(jfb.w[at(s)].norm() > 0.1);
  }
}

TEST_CASE("Identities: Gdeq is the same for both storages, and exact with the exact inverse") {
  using B = Cpu<double>;
  const Stopping stopping{.max_iterations = 12, .relative_tolerance = 0};
  const Family<B> pairs(Broyden<>{.stopping = stopping});
  const Family<B, Broyden<StepsOnly>> steps(Broyden<StepsOnly>{.stopping = stopping});
  const Adjoints a = pairs.adjoints(Gdeq{}), b = steps.adjoints(Gdeq{}),
                 jfb = pairs.adjoints(Jfb{});
  for (Index s = 0; s < pairs.count; ++s) {
    CHECK(error(a.w[at(s)], b.w[at(s)]) < 1e-8);
    CHECK(error(a.w[at(s)], jfb.w[at(s)]) > 1e-2);

    const MatrixXd J = pairs.jacobian.matrices[at(s)];
    const DenseInverse<B> inverse{(J - identity(pairs.n)).inverse()};
    const Adjoints best = adjoints<B>(Gdeq{}, {{J}}, {pairs.h[at(s)]}, &inverse);
    CHECK(error(best.w[0], exact(J, pairs.h[at(s)])) < 1e-13);
  }
}

TEST_CASE("Gdeq is as good with steps stored as bfloat16") {
  using B = Cpu<double>;
  const Stopping stopping{.max_iterations = 12, .relative_tolerance = 0};
  const Family<B, Broyden<StepsOnly>> full(Broyden<StepsOnly>{.stopping = stopping});
  const Family<B, Broyden<CompactSteps>> compact(Broyden<CompactSteps>{.stopping = stopping});
  const Adjoints a = full.adjoints(Gdeq{}), b = compact.adjoints(Gdeq{}),
                 jfb = full.adjoints(Jfb{});
  for (Index s = 0; s < full.count; ++s) {
    const double of_full = a.report.samples[at(s)].residual,
                 of_compact = b.report.samples[at(s)].residual;
    CHECK(of_compact < 1.1 * of_full);
    CHECK(of_compact < jfb.report.samples[at(s)].residual);
  }
}

TEST_CASE("Gdeq takes Anderson's inverse as well; it is better than Jfb here") {
  const Family<Cpu<double>, Anderson> family(Anderson{.memory = 8});
  const Adjoints gdeq = family.adjoints(Gdeq{}), jfb = family.adjoints(Jfb{});
  for (Index s = 0; s < family.count; ++s) {
    CHECK(error(gdeq.w[at(s)], -family.H(s).transpose() * family.h[at(s)]) < 1e-13);
    CHECK(gdeq.report.samples[at(s)].residual < jfb.report.samples[at(s)].residual);
  }
}

TEST_CASE("Refinement by minimal residuals never makes the residual larger") {
  // Far from a contraction, where Neumann's series diverges.
  const Family<Cpu<double>> family({}, 2.0);
  std::vector<double> last(5, std::numeric_limits<double>::infinity());
  for (int r = 0; r <= 8; ++r) {
    const Adjoints now = family.adjoints(Gdeq{r, Gdeq::Refinement::minimal_residual});
    for (Index s = 0; s < family.count; ++s) {
      const double residual = now.report.samples[at(s)].residual;
      CHECK(residual <= last[at(s)] * (1 + 1e-12));
      last[at(s)] = residual;
    }
  }
  const Adjoints neumann = family.adjoints(Gdeq{8, Gdeq::Refinement::neumann});
  CHECK(neumann.report.worst_residual() > 1);
}

TEST_CASE_TEMPLATE("The guard replaces w by h where their norms are too far apart", B,
                   ALL_BACKENDS) {
  const Family<B> family;
  const Adjoints free = family.adjoints(Gdeq{});
  std::vector<double> ratio;
  for (Index s = 0; s < family.count; ++s)
    ratio.push_back(free.w[at(s)].norm() / family.h[at(s)].norm());
  CHECK(free.report.fallbacks() == 0);
  std::vector<double> sorted = ratio;
  std::sort(sorted.begin(), sorted.end());
  // Bounds between the second and the third, and between the fourth and the fifth ratio.
  const double low = (sorted[1] + sorted[2]) / 2, high = (sorted[3] + sorted[4]) / 2;
  const Adjoints guarded = family.adjoints(Gdeq{.min_norm_ratio = low, .max_norm_ratio = high});
  CHECK(guarded.report.fallbacks() == 3);
  const Adjoints jfb = family.adjoints(Jfb{});
  for (Index s = 0; s < family.count; ++s) {
    const bool outside = ratio[at(s)] < low || ratio[at(s)] > high;
    CHECK(guarded.report.samples[at(s)].fell_back == outside);
    CHECK(guarded.w[at(s)] == (outside ? jfb.w[at(s)] : free.w[at(s)]));
  }
}

TEST_CASE("The guard judges what is returned: after the refinements") {
  using B = Cpu<double>;
  using enum Gdeq::Refinement;
  const VectorXd h = (VectorXd(3) << 1, -2, 0.5).finished();
  const MatrixXd I = identity(3);
  const auto check = [&](const Gdeq& policy, double j, double inverse, double expected) {
    CAPTURE(policy.refinements);
    const DenseInverse<B> H{inverse * I};
    const Adjoints computed = adjoints<B>(policy, {{j * I}}, {h}, &H);
    CHECK(error(computed.w[0], expected * h) < 1e-14);
    CHECK(computed.report.samples[0].fell_back == (expected == 1));
    CHECK(computed.w[0].norm() <= policy.max_norm_ratio * h.norm());
    CHECK(computed.report.samples[0].residual == doctest::Approx(std::abs(1 - (1 - j) * expected)));
  };
  // An inverse that is far off: neither it nor what it makes of h is returned.
  for (const int r : {0, 1, 2, 12}) check({.refinements = r, .max_norm_ratio = 3}, 0.5, -100, 1);
  // Neumann's series diverges, and leaves the bounds at the third step: the error 1/8 times (-3)^r.
  check({.refinements = 2, .refinement = neumann, .max_norm_ratio = 2}, -3, -0.375, 1.375);
  check({.refinements = 3, .refinement = neumann, .max_norm_ratio = 2}, -3, -0.375, 1);
  // What was out of bounds, and then is refined to the solution, is returned.
  check({.refinements = 1, .refinement = minimal_residual, .max_norm_ratio = 3}, 0.5, -100, 2);
}

TEST_CASE("The guard catches an inverse that is no number, and lets a zero cotangent be") {
  using B = Cpu<double>;
  const MatrixXd J = MatrixXd::Constant(3, 3, 0.1);
  const DenseInverse<B> broken{MatrixXd::Constant(3, 3, std::nan(""))};
  const VectorXd h = VectorXd::Ones(3);
  const Adjoints caught = adjoints<B>(Gdeq{}, {{J}}, {h}, &broken);
  CHECK(caught.report.fallbacks() == 1);
  CHECK(caught.w[0] == h);

  const DenseInverse<B> fine{-identity(3)};
  const Adjoints zero = adjoints<B>(Gdeq{.min_norm_ratio = 0.5, .max_norm_ratio = 2}, {{J}},
                                    {VectorXd::Zero(3)}, &fine);
  CHECK(zero.report.fallbacks() == 0);
  CHECK(zero.w[0] == VectorXd::Zero(3));
  CHECK(zero.report.samples[0].residual == 0);
}

TEST_CASE_TEMPLATE("A cotangent of NaNs does not reach the neighbours, by any policy", Policy,
                   Exact, Jfb, Npg, Gdeq, Implicit<>, Implicit<Gmres>) {
  Policy policy;
  if constexpr (std::is_same_v<Policy, Gdeq>) policy.refinements = 2;
  Family<Cpu<double>> family;
  const Adjoints clean = family.adjoints(policy);
  family.h[2].setConstant(std::nan(""));
  const Adjoints beside = family.adjoints(policy);
  for (Index s = 0; s < family.count; ++s)
    if (s != 2) CHECK(same_bits(beside.w[at(s)].data(), clean.w[at(s)].data(), family.n));
}

TEST_CASE("The certificate bounds the error of the adjoint") {
  const Family<Cpu<double>> family;
  const auto check = [&](const auto& policy) {
    const Adjoints computed = family.adjoints(policy);
    for (Index s = 0; s < family.count; ++s) {
      const MatrixXd A = identity(family.n) - family.jacobian.matrices[at(s)].transpose();
      const Eigen::JacobiSVD<MatrixXd> svd(A);
      const VectorXd w = exact(family.jacobian.matrices[at(s)], family.h[at(s)]);
      const double certificate = computed.report.samples[at(s)].residual;
      CHECK(certificate > 1e-6);
      CHECK((computed.w[at(s)] - w).norm() <=
            certificate * family.h[at(s)].norm() / svd.singularValues().minCoeff() * (1 + 1e-9));
    }
  };
  check(Jfb{});
  check(Npg{});
  check(Gdeq{});
}

TEST_CASE("Npg tends to Exact as its terms grow, Jfb does not wait for anybody") {
  const Family<Cpu<double>> family;
  double last = std::numeric_limits<double>::infinity();
  for (const int k : {5, 10, 20, 40, 80}) {
    const double now = family.adjoints(Npg{k, 0.5}).report.worst_residual();
    CHECK(now < last);
    last = now;
  }
  CHECK(last < 1e-8);
  CHECK(family.adjoints(Jfb{}).report.worst_residual() > 0.1);
}

TEST_CASE("Parameters outside their domain are refused by name") {
  const Family<Cpu<double>> family;
  const auto refused = [&](const auto& policy, const char* text) {
    CHECK_THROWS_WITH_AS(family.adjoints(policy), doctest::Contains(text), InvalidArgument);
  };
  refused(Npg{0, 0.5}, "Npg: k must be >= 1, got 0");
  refused(Npg{5, 0}, "Npg: lambda must be in (0, 1], got 0");
  refused(Npg{5, 1.5}, "Npg: lambda must be in (0, 1], got 1.5");
  refused(Gdeq{-1}, "Gdeq: refinements must be >= 0, got -1");
  refused(Gdeq{.min_norm_ratio = -0.5}, "Gdeq: min_norm_ratio must be >= 0, got -0.5");
  refused(Gdeq{.min_norm_ratio = std::nan("")}, "Gdeq: min_norm_ratio must be >= 0, got nan");
  refused(Gdeq{.min_norm_ratio = 2, .max_norm_ratio = 1.5},
          "Gdeq: max_norm_ratio must be >= min_norm_ratio, 2, got 1.5");
  refused(Gdeq{.max_norm_ratio = std::nan("")}, "must be >= min_norm_ratio, 0, got nan");
  Implicit<> implicit;
  implicit.solver.stopping.relative_tolerance = -1;
  refused(implicit, "relative_tolerance must be >= 0, got -1");
}
