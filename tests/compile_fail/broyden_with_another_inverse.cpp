// expect: the storage of Broyden names an inverse that a rank-one update can build
// SPDX-License-Identifier: MIT
// Anderson's inverse offers the products that a gradient needs, and no rank-one update.
#include <deq/backend/cpu/cpu.hpp>
#include <deq/inverse/multisecant.hpp>
#include <deq/solver/broyden.hpp>

struct Storage : deq::Pairs {
#ifndef DEQ_FIXED
  template <class B>
  using Inverse = deq::Multisecant<B>;
#endif
};

deq::Broyden<Storage>::Workspace<deq::Cpu<double>> workspace;
