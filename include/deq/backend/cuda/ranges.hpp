// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace deq::cuda {

/// Neighbouring bytes of one allocation, which is known by where it begins.
struct Range {
  char* begin = nullptr;
  std::size_t bytes = 0;
  char* allocation = nullptr;

  char* end() const { return begin + bytes; }
};

/// Memory that nobody uses. A request takes the first bytes of the smallest range that is large
/// enough; what is left of it stays, and what is given back grows together with its neighbours. So
/// phases of a computation share their memory, whatever the sizes of their tensors. Cost of each
/// call: logarithmic in the number of ranges.
class Ranges {
 public:
  Ranges() = default;
  Ranges(Ranges&& other) noexcept { swap(other); }
  Ranges& operator=(Ranges&& other) noexcept {
    swap(other);
    return *this;
  }

  void put(Range r) {
    auto next = of_.lower_bound(r.begin);
    if (next != of_.end() && joins(r, next->second)) {
      r.bytes += next->second.bytes;
      next = erase(next);
    }
    if (next != of_.begin())
      if (const auto before = std::prev(next); joins(before->second, r)) {
        r = {before->second.begin, before->second.bytes + r.bytes, r.allocation};
        erase(before);
      }
    insert(r);
  }
  void put_all(Ranges& others) {
    for (const auto& [begin, range] : others.of_) put(range);
    others = {};
  }

  /// So many bytes of a range that has no more than `most`; nothing if there is none.
  std::optional<Range> take(std::size_t bytes, std::size_t most) {
    const auto found = by_size_.lower_bound({bytes, nullptr});
    if (found == by_size_.end() || found->first > most) return std::nullopt;
    const auto at = of_.find(found->second);
    const Range whole = at->second;
    erase(at);
    if (whole.bytes > bytes) insert({whole.begin + bytes, whole.bytes - bytes, whole.allocation});
    return Range{whole.begin, bytes, whole.allocation};
  }

  /// Takes out whatever of r is in here, and says how many bytes that were.
  std::size_t cut(const Range& r) {
    std::size_t bytes = 0;
    auto at = of_.lower_bound(r.begin);
    if (at != of_.begin() && std::prev(at)->second.end() > r.begin) --at;
    while (at != of_.end() && at->second.begin < r.end()) {
      const Range whole = at->second;
      at = erase(at);
      char* const begin = std::max(whole.begin, r.begin);
      char* const end = std::min(whole.end(), r.end());
      if (whole.begin < begin)
        insert({whole.begin, static_cast<std::size_t>(begin - whole.begin), whole.allocation});
      if (end < whole.end())
        insert({end, static_cast<std::size_t>(whole.end() - end), whole.allocation});
      bytes += static_cast<std::size_t>(end - begin);
    }
    return bytes;
  }

  bool contains(const Range& r) const {
    auto at = of_.upper_bound(r.begin);
    return at != of_.begin() && r.end() <= (--at)->second.end();
  }
  auto begin() const { return of_.begin(); }
  auto end() const { return of_.end(); }

 private:
  using Map = std::map<char*, Range>;

  /// Whether b goes on where a ends. Allocations are neighbours by chance alone.
  static bool joins(const Range& a, const Range& b) {
    return a.end() == b.begin && a.allocation == b.allocation;
  }
  void insert(const Range& r) {
    of_.emplace(r.begin, r);
    by_size_.emplace(r.bytes, r.begin);
  }
  Map::iterator erase(Map::iterator at) {
    by_size_.erase({at->second.bytes, at->second.begin});
    return of_.erase(at);
  }
  void swap(Ranges& other) noexcept {
    of_.swap(other.of_);
    by_size_.swap(other.by_size_);
  }

  Map of_;  ///< by where they begin
  std::set<std::pair<std::size_t, char*>> by_size_;
};

}  // namespace deq::cuda
