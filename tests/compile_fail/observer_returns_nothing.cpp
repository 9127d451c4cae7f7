// expect: deq: an observer is called with a const deq::Observation& and returns a bool, true to end
// the solve SPDX-License-Identifier: MIT An observer must say whether the solve is to end.
#include <deq/backend/cpu/cpu.hpp>
#include <deq/solver/broyden.hpp>

using B = deq::Cpu<double>;

struct Map {
  using Backend = B;
  deq::Index dim() const { return 1; }
  void evaluate(deq::Samples, deq::BatchView<const double>, deq::BatchView<double>) {}
};

void solve(Map& f, deq::BatchView<double> z) {
  deq::Broyden<>::Workspace<B> ws;
#ifdef DEQ_FIXED
  deq::Broyden<>{}.solve(f, z, ws, [](const deq::Observation&) { return false; });
#else
  deq::Broyden<>{}.solve(f, z, ws, [](const deq::Observation&) {});
#endif
}
