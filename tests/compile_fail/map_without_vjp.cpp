// expect: 'Linearization
// SPDX-License-Identifier: MIT
// A backward policy is given f itself. It needs what f.linearize(z) returns: something with a VJP.
#include <deq/backend/cpu/cpu.hpp>
#include <deq/backward/implicit.hpp>

using B = deq::Cpu<double>;
using In = deq::BatchView<const double>;
using Out = deq::BatchView<double>;

struct Map {
  using Backend = B;
  deq::Index dim() const { return 1; }
  void evaluate(deq::Samples, In, Out) {}

  struct Jacobian {
    void vjp(deq::Samples, In, Out) {}
  };
  Jacobian linearize(In) { return {}; }
};

void adjoint(deq::Samples everybody, Map& f, In z, In h, Out w) {
#ifdef DEQ_FIXED
  auto jacobian = f.linearize(z);
#else
  auto jacobian = f;
#endif
  const deq::NoInverse none;
  deq::Implicit<>::Workspace<B> ws;
  deq::Implicit<>{}.adjoint(everybody, jacobian, &none, h, w, ws);
}
