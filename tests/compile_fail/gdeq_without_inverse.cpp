// expect: 'InverseJacobian
// SPDX-License-Identifier: MIT
// Gdeq used without a layer, and given NoInverse, which is what a solver leaves that has none.
#include <deq/backend/cpu/cpu.hpp>
#include <deq/backward/gdeq.hpp>
#include <deq/inverse/low_rank_pairs.hpp>
#include <deq/solver/concept.hpp>

using B = deq::Cpu<double>;
using Out = deq::BatchView<double>;

struct Jacobian {
  void vjp(deq::Samples, deq::BatchView<const double>, Out) {}
};

void adjoint(deq::Samples everybody, Jacobian& jacobian, Out h, Out w) {
#ifdef DEQ_FIXED
  const deq::LowRankPairs<B> inverse;
#else
  const deq::NoInverse inverse;
#endif
  deq::Gdeq::Workspace<B> ws;
  deq::Gdeq{}.adjoint(everybody, jacobian, &inverse, h, w, ws);
}
