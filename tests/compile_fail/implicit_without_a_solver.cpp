// expect: 'FixedPointSolver
// SPDX-License-Identifier: MIT
// The template argument of Implicit is how it solves its linear equation, not a second policy.
#include <deq/backward/implicit.hpp>
#include <deq/backward/jfb.hpp>
#include <deq/solver/gmres.hpp>

#ifdef DEQ_FIXED
const deq::Implicit<deq::Gmres> policy;
#else
const deq::Implicit<deq::Jfb> policy;
#endif
