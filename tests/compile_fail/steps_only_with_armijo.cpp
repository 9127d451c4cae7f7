// expect: deq: StepsOnly keeps unit steps: use Broyden<Pairs, Armijo> for a line search
// SPDX-License-Identifier: MIT
// An inverse made of the steps alone supposes that every step has length 1: no line search.
#include <deq/solver/broyden.hpp>

#ifdef DEQ_FIXED
const deq::Broyden<deq::Pairs, deq::Armijo> solver;
#else
const deq::Broyden<deq::StepsOnly, deq::Armijo> solver;
#endif
