// SPDX-License-Identifier: MIT
#pragma once

#include <deq/core/parallel.hpp>

namespace deq_test {

/// Sets the number of threads for one scope.
class Threads {
 public:
  explicit Threads(int n) { deq::set_num_threads(n); }
  ~Threads() { deq::set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_ = deq::num_threads();
};

}  // namespace deq_test
