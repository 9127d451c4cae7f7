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

#include "maps.hpp"

namespace deq_test {

/// n random numbers in [-1, 1), the same for the same seed.
inline std::vector<double> random(Index n, std::uint32_t seed) { return Noise(seed).vector(n); }

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

/// Runs on B and on the CPU; the outputs must agree within the tolerance, relative to
/// the larger of 1 and the number itself. On an emulated device a second run, in which the threads
/// take their turns in another order, must give the same bits.
template <class B, class Call>
void both(const std::vector<std::vector<double>>& in, const std::vector<Index>& out,
          double tolerance, Call&& call) {
  const auto mine = run<B>(in, out, call);
  const auto expected = run<deq::Cpu<typename B::Scalar>>(in, out, call);
  for (std::size_t i = 0; i < out.size(); ++i) {
    double worst = 0;
    for (std::size_t k = 0; k < mine[i].size(); ++k) {
      const auto a = static_cast<double>(mine[i][k]), b = static_cast<double>(expected[i][k]);
      const double error = std::abs(a - b) / std::max(1.0, std::abs(b));
      if (!(error <= worst)) worst = error;  // a NaN is worst of all
    }
    CHECK_MESSAGE(worst <= tolerance, "output ", i, " is off by ", worst);
  }
#ifdef DEQ_CUDA_EMULATION
  deq_emulation::set_order(deq_emulation::Order::backward, 0);
  const auto again = run<B>(in, out, call);
  deq_emulation::set_order(deq_emulation::Order::forward, 0);
  for (std::size_t i = 0; i < out.size(); ++i)
    CHECK(same_bits(mine[i].data(), again[i].data(), out[i]));
#endif
}

}  // namespace deq_test
