// expect: deq: FixedPoint leaves no inverse Jacobian behind
// SPDX-License-Identifier: MIT
// A solver is asked to leave behind an inverse that it does not have.
#include <deq/backend/cpu/cpu.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/fixed_point.hpp>

using B = deq::Cpu<double>;

struct Map {
  using Backend = B;
  deq::Index dim() const { return 1; }
  void evaluate(deq::Samples, deq::BatchView<const double>, deq::BatchView<double>) {}
};

#ifdef DEQ_FIXED
using Solver = deq::Anderson;
#else
using Solver = deq::FixedPoint;
#endif

void solve(Map& f, deq::BatchView<double> z) {
  Solver::Workspace<B> ws;
  Solver{}.solve<deq::KeepInverse::yes>(f, z, ws);
}
