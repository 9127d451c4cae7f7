// SPDX-License-Identifier: MIT
// The same kernels with the same numbers on two backends.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/array.hpp>
#include <deq/backend/cpu/cpu.hpp>
#include <deq/core/bfloat16.hpp>

#include "maps.hpp"

namespace deq_test {

inline std::vector<double> rounded_to_bfloat16(std::vector<double> numbers) {
  for (double& x : numbers)
    x = static_cast<double>(static_cast<float>(deq::Bfloat16(static_cast<float>(x))));
  return numbers;
}

/// n random numbers in [-1, 1], the same for the same seed. They are bfloat16's, so that their
/// products are exact in every precision, and what is left of an error is that of sums.
inline std::vector<double> random(Index n, std::uint32_t seed) {
  return rounded_to_bfloat16(Noise(seed).vector(n));
}

/// Memory of a backend for the length of a test.
template <class B>
deq::Array<B> scratch(B, Index n) {
  return deq::Array<B>(n);
}
template <class S, class B>
void copy(B, const S* from, S* to, Index n) {
  B::copy_bytes(to, from, static_cast<std::size_t>(n) * sizeof(S));
}

/// call(backend, inputs, outputs) with pointers into the backend's memory; the outputs, which are
/// NaN before.
template <class B, class Call>
std::vector<std::vector<typename B::Scalar>> run(const std::vector<std::vector<double>>& in,
                                                 const std::vector<Index>& out, Call&& call) {
  using S = typename B::Scalar;
  std::vector<deq::Array<B>> memory;
  std::vector<const S*> x;
  std::vector<S*> y;
  for (const std::vector<double>& values : in) {
    const std::vector<S> host(values.begin(), values.end());
    memory.emplace_back(static_cast<Index>(host.size()));
    B::upload_bytes(memory.back().data(), host.data(), host.size() * sizeof(S));
    x.push_back(memory.back().data());
  }
  for (const Index n : out) {
    memory.emplace_back(n);
    B::fill(memory.back().data(), n, std::numeric_limits<S>::quiet_NaN());
    y.push_back(memory.back().data());
  }
  call(B{}, x, y);
  std::vector<std::vector<S>> results;
  for (std::size_t i = 0; i < out.size(); ++i) {
    results.emplace_back(static_cast<std::size_t>(out[i]));
    B::download_bytes(results.back().data(), y[i], results.back().size() * sizeof(S));
  }
  return results;
}

/// Runs on B and on the CPU; each output must agree within its tolerance, relative to the larger
/// of 1 and the number itself, and zeros in its place must not. On an emulated device a second run,
/// in which the threads take their turns in another order, must give the same bits.
template <class B, class Call>
void both(const std::vector<std::vector<double>>& in, const std::vector<Index>& out,
          const std::vector<double>& tolerances, Call&& call) {
  const auto mine = run<B>(in, out, call);
  const auto expected = run<deq::Cpu<typename B::Scalar>>(in, out, call);
  for (std::size_t i = 0; i < out.size(); ++i) {
    double worst = 0, worst_of_zeros = 0;
    for (std::size_t k = 0; k < mine[i].size(); ++k) {
      const auto a = static_cast<double>(mine[i][k]), b = static_cast<double>(expected[i][k]);
      worst = worse(worst, std::abs(a - b) / std::max(1.0, std::abs(b)));
      worst_of_zeros = std::max(worst_of_zeros, std::min(1.0, std::abs(b)));
    }
    CHECK_MESSAGE(worst <= tolerances[i], "output ", i, " is off by ", worst);
    CHECK_MESSAGE((worst_of_zeros == 0 || worst_of_zeros > tolerances[i]), "zeros pass as output ",
                  i);
  }
#ifdef DEQ_CUDA_EMULATION
  deq_emulation::set_order(deq_emulation::Order::backward, 0);
  const auto again = run<B>(in, out, call);
  deq_emulation::set_order(deq_emulation::Order::forward, 0);
  for (std::size_t i = 0; i < out.size(); ++i)
    CHECK(same_bits(mine[i].data(), again[i].data(), out[i]));
#endif
}
template <class B, class Call>
void both(const std::vector<std::vector<double>>& in, const std::vector<Index>& out,
          double tolerance, Call&& call) {
  both<B>(in, out, std::vector<double>(out.size(), tolerance), call);
}

}  // namespace deq_test
