// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backend/cpu/cpu.hpp>
#include <deq/core/map.hpp>

namespace bench {

using deq::BatchView;
using deq::Index;
using deq::Samples;

/// z_i = x_i + z_i-1 / 2 + z_i+1 / (3 + z_i^2), cyclic: f costs one pass over z, so that the time
/// of a solve is the solver's own. Slow enough to converge that thirty steps are thirty steps.
template <class S>
class CheapMap {
 public:
  using Backend = deq::Cpu<S>;

  explicit CheapMap(Index dim) : dim_(dim) {}
  Index dim() const { return dim_; }

  void evaluate(Samples a, BatchView<const S> z, BatchView<S> out) const {
    deq::parallel_for(
        a.count,
        [&](Index j) {
          const S* x = z.col(j);
          S* y = out.col(j);
          const Index n = dim_;
          const auto f = [=](Index i, Index before, Index after) {
            const S input = static_cast<S>((i + 3 * a[j]) % 7) - 3;
            return input + x[before] / 2 + x[after] / (3 + x[i] * x[i]);
          };
          y[0] = f(0, n - 1, 1 % n);
          for (Index i = 1; i + 1 < n; ++i) y[i] = f(i, i - 1, i + 1);
          if (n > 1) y[n - 1] = f(n - 1, n - 2, 0);
        },
        a.count * dim_ < 32768);
  }

 private:
  Index dim_;
};

}  // namespace bench
