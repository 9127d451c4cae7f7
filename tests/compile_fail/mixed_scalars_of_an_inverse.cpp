// expect: 'InverseJacobian
// SPDX-License-Identifier: MIT
// A backward pass in float is given the inverse of a solve in double.
#include <deq/backend/cpu/cpu.hpp>
#include <deq/backward/gdeq.hpp>
#include <deq/inverse/low_rank_pairs.hpp>

using Out = deq::BatchView<float>;

struct Jacobian {
  void vjp(deq::Samples, deq::BatchView<const float>, Out) {}
};

void adjoint(deq::Samples everybody, Jacobian& jacobian, Out h, Out w) {
#ifdef DEQ_FIXED
  const deq::LowRankPairs<deq::Cpu<float>> inverse;
#else
  const deq::LowRankPairs<deq::Cpu<double>> inverse;
#endif
  deq::Gdeq::Workspace<deq::Cpu<float>> ws;
  deq::Gdeq{}.adjoint(everybody, jacobian, &inverse, h, w, ws);
}
