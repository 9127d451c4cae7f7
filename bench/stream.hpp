// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

#include <deq/core/parallel.hpp>

namespace bench {

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Bytes a second of a = b + c * x, three arrays of `bytes` in all shared by the team: the best of
/// several passes. Large arrays measure the memory, small ones a cache.
inline double triad_bandwidth(std::size_t bytes) {
  const auto n = static_cast<deq::Index>(bytes / (3 * sizeof(float)));
  constexpr deq::Index block = 16384;
  std::vector<float> a(static_cast<std::size_t>(n)), b(a), c(a);
  const auto pass = [&](float x) {
    deq::parallel_for((n + block - 1) / block,
                      [&](deq::Index k) {
                        float* to = a.data();
                        const float *p = b.data(), *q = c.data();
                        const deq::Index end = std::min(n, (k + 1) * block);
                        for (deq::Index i = k * block; i < end; ++i) to[i] = p[i] + x * q[i];
                      },
                      n < 32768);
  };
  double best = 0;
  const int passes = static_cast<int>(std::clamp(1e9 / static_cast<double>(bytes), 10., 2000.));
  for (int repeat = 0; repeat < passes; ++repeat) {
    const double start = now();
    pass(static_cast<float>(repeat));
    best = std::max(best, static_cast<double>(n) * 3 * sizeof(float) / (now() - start));
  }
  return best;
}
/// The yardstick: 192 MB, more than any cache of the day.
inline double stream_bandwidth() {
  static const double measured = triad_bandwidth(std::size_t{192} << 20);
  return measured;
}

}  // namespace bench
