// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>

namespace deq::detail {

/// A number that no other call returns, never 0: it tells a thing from what takes its place.
inline std::uint64_t fresh_stamp() {
  static std::atomic<std::uint64_t> last = 0;
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

}  // namespace deq::detail
