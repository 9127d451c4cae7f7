// expect: 'deq::Broyden<>::Workspace<deq::Cpu<double>
// SPDX-License-Identifier: MIT
// A map in float is solved with the workspace of a solver in double.
#include <deq/backend/cpu/cpu.hpp>
#include <deq/solver/broyden.hpp>

struct Map {
  using Backend = deq::Cpu<float>;
  deq::Index dim() const { return 1; }
  void evaluate(deq::Samples, deq::BatchView<const float>, deq::BatchView<float>) {}
};

void solve(Map& f, deq::BatchView<float> z) {
#ifdef DEQ_FIXED
  deq::Broyden<>::Workspace<deq::Cpu<float>> ws;
#else
  deq::Broyden<>::Workspace<deq::Cpu<double>> ws;
#endif
  deq::Broyden<>{}.solve(f, z, ws);
}
