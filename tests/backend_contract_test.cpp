// SPDX-License-Identifier: MIT
#include <cstring>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/cpu/cpu.hpp>

#include "support/naive_backend.hpp"

#define DEQ_CONTRACT_BACKENDS \
  deq::Cpu<float>, deq::Cpu<double>, deq_test::NaiveBackend<float>, deq_test::NaiveBackend<double>
#include "support/backend_contract.hpp"

TEST_CASE_TEMPLATE("A sample's bits do not depend on the alignment of its memory", S, float,
                   double) {
  constexpr Index n = 1000;
  std::vector<S> x(n + 16), y(n + 16);
  const auto values = random_batch<Cpu<S>>(n, 40).before(),
             other = random_batch<Cpu<S>>(n, 41).before();
  S first = 0;
  for (std::size_t shift = 0; shift < 16; ++shift) {
    std::copy(values.begin(), values.end(), x.begin() + static_cast<std::ptrdiff_t>(shift));
    std::copy(other.begin(), other.end(), y.begin());
    const S now = detail::dot(x.data() + shift, y.data(), n);
    if (shift == 0) first = now;
    CHECK(std::memcmp(&now, &first, sizeof now) == 0);
  }
}
