// expect: 'AffineMap
// SPDX-License-Identifier: MIT
// Gmres solves z = A z + b and asks the map for A alone: a map that does not offer it is not
// affine.
#include <deq/backend/cpu/cpu.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/gmres.hpp>

using B = deq::Cpu<double>;

struct Map {
  using Backend = B;
  deq::Index dim() const { return 1; }
  void evaluate(deq::Samples, deq::BatchView<const double>, deq::BatchView<double>) {}
};

#ifdef DEQ_FIXED
using Solver = deq::Anderson;
#else
using Solver = deq::Gmres;
#endif

void solve(Map& f, deq::BatchView<double> z) {
  Solver::Workspace<B> ws;
  Solver{}.solve(f, z, ws);
}
