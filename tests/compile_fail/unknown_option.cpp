// expect: 'iterations'
// SPDX-License-Identifier: MIT
// An option that does not exist is an error, never ignored.
#include <deq/backward/npg.hpp>

#ifdef DEQ_FIXED
const deq::Npg policy{.k = 3};
#else
const deq::Npg policy{.iterations = 3};
#endif
