// SPDX-License-Identifier: MIT
// The order in which everything runs that CUDA leaves unordered.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

namespace deq_emulation {

enum class Order { forward, backward, shuffled };

class Schedule {
 public:
  void set(Order order, std::uint32_t seed) {
    order_ = order;
    random_.seed(seed);
  }
  Order order() const { return order_; }

  /// 0, ..., n - 1 in the order to run.
  void arrange(std::vector<unsigned>& indices, std::size_t n) {
    indices.resize(n);
    std::iota(indices.begin(), indices.end(), 0u);
    if (order_ == Order::backward) std::reverse(indices.begin(), indices.end());
    if (order_ == Order::shuffled)
      for (std::size_t left = n; left > 1; --left)
        std::swap(indices[left - 1], indices[below(left)]);
  }

  /// Which of the candidates, numbers of things that may run now, goes first.
  std::size_t pick(const std::vector<std::size_t>& candidates) {
    if (order_ == Order::shuffled) return below(candidates.size());
    const auto best = order_ == Order::forward
                          ? std::min_element(candidates.begin(), candidates.end())
                          : std::max_element(candidates.begin(), candidates.end());
    return static_cast<std::size_t>(best - candidates.begin());
  }

 private:
  // The same with every standard library, which std::shuffle is not.
  std::size_t below(std::size_t n) { return random_() % n; }

  Order order_ = Order::forward;
  std::minstd_rand random_;
};

inline Schedule schedule;

/// Sets the order of blocks, of threads between two barriers, and of graph nodes that do not depend
/// on each other.
inline void set_order(Order order, std::uint32_t seed = 1) { schedule.set(order, seed); }

}  // namespace deq_emulation
