// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

namespace deq_test {

/// The worse of two errors; NaN is the worst of all, whichever it is.
inline double worse(double a, double b) { return std::isnan(a) || b <= a ? a : b; }

}  // namespace deq_test
