// SPDX-License-Identifier: MIT
// Solvers, inverses and policies name no backend, and run inside kernels as device lambdas, of
// which nvcc accepts fewer than C++ does (none in a private function, none with an init-capture).
// Compiles all of them for the GPU, and runs them on the host with the hand-written backend.
#include <cmath>
#include <cstdio>
#include <vector>

#include <deq/backward/certificate.hpp>
#include <deq/backward/gdeq.hpp>
#include <deq/backward/implicit.hpp>
#include <deq/backward/jfb.hpp>
#include <deq/backward/npg.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/broyden.hpp>
#include <deq/solver/fixed_point.hpp>
#include <deq/solver/gmres.hpp>

#include "support/maps.hpp"
#include "support/naive_backend.hpp"

using B = deq_test::NaiveBackend<double>;
using deq_test::DenseAffine;

/// The largest |x - 1| of a solution that is 1 everywhere.
double error(const std::vector<double>& x) {
  double worst = 0;
  for (const double xi : x) worst = std::fmax(worst, std::fabs(xi - 1));
  return worst;
}

int main() {
  // z = A z + b with the solution 1; the rows of A sum up to 0.6, its columns as well.
  DenseAffine<B> f({.3, .2, .1, .1, .3, .2, .2, .1, .3}, {.4, .4, .4});
  const deq::Stopping stopping{.max_iterations = 100, .relative_tolerance = 1e-12};
  const deq_test::Everybody everybody(2);
  const std::vector<double> h(6, 0.4);
  double worst = 0;
  const auto note = [&](const char* name, double e) {
    std::printf("%-28s %.1e\n", name, e);
    worst = std::fmax(worst, e);
  };
  const auto check = [&](const char* name, auto solver) {
    note(name, error(deq_test::solve(solver, f, std::vector<double>(6)).z));
  };
  check("FixedPoint", deq::FixedPoint{.stopping = stopping});
  check("Anderson", deq::Anderson{.stopping = stopping});
  check("Gmres", deq::Gmres{.stopping = stopping});
  check("Broyden<StepsOnly>", deq::Broyden<deq::StepsOnly>{.stopping = stopping});
  check("Broyden<Pairs, Armijo>", deq::Broyden<deq::Pairs, deq::Armijo>{.stopping = stopping});

  deq::Broyden<>::Workspace<B> solved;
  deq_test::solve<deq::KeepInverse::yes>(deq::Broyden<>{.stopping = stopping}, f,
                                         std::vector<double>(6), solved);
  const auto adjoint = [&](const char* name, auto policy) {
    std::vector<double> w(6);
    const deq::BatchView<const double> hv{h.data(), 3, 2};
    const deq::BatchView<double> wv{w.data(), 3, 2};
    typename decltype(policy)::template Workspace<B> ws;
    policy.template adjoint<B>(everybody, f, &solved.inverse, hv, wv, ws);
    deq::CertificateWorkspace<B> scratch;
    deq::certify<B>(everybody, f, hv, deq::BatchView<const double>(wv), scratch, ws.report);
    note(name, error(w));
  };
  adjoint("Implicit<Broyden>", deq::Implicit<>{.solver = {.stopping = stopping}});
  adjoint("Npg, 60 terms", deq::Npg{.k = 60, .lambda = 1});
  using Refinement = deq::Gdeq::Refinement;
  for (const Refinement r :
       {Refinement::preconditioned, Refinement::neumann, Refinement::minimal_residual})
    adjoint("Gdeq, refined", deq::Gdeq{.refinements = 60, .refinement = r});
  return worst < 1e-10 ? 0 : 1;
}
