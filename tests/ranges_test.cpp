// SPDX-License-Identifier: MIT
#include <array>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/cuda/ranges.hpp>
#include <deq/core/random.hpp>

using deq::cuda::Range;
using deq::cuda::Ranges;

namespace {

constexpr std::size_t any = std::numeric_limits<std::size_t>::max();

/// Bytes that nobody looks at; only where they are counts.
struct Memory {
  std::array<char, 4096> bytes;
  Range range(std::size_t begin, std::size_t end) {
    return {bytes.data() + begin, end - begin, bytes.data()};
  }
  /// Where a range begins, behind it where there is none.
  std::size_t at(const std::optional<Range>& r) const {
    return r ? static_cast<std::size_t>(r->begin - bytes.data()) : bytes.size();
  }
};

std::vector<std::size_t> sizes(const Ranges& ranges) {
  std::vector<std::size_t> all;
  for (const auto& [begin, range] : ranges) all.push_back(range.bytes);
  return all;
}

}  // namespace

TEST_CASE("A request takes the first bytes of the smallest range that is large enough") {
  Memory memory;
  Ranges ranges;
  CHECK(!ranges.take(1, any));
  ranges.put(memory.range(0, 1000));
  ranges.put(memory.range(1100, 1200));
  ranges.put(memory.range(2000, 2400));
  CHECK(memory.at(ranges.take(300, any)) == 2000);
  CHECK(sizes(ranges) == std::vector<std::size_t>{1000, 100, 100});
  CHECK(memory.at(ranges.take(100, any)) == 1100);
  CHECK(memory.at(ranges.take(100, any)) == 2300);
  CHECK(!ranges.take(100, 999));
  CHECK(memory.at(ranges.take(100, 1000)) == 0);
  CHECK(!ranges.take(901, any));
  CHECK(sizes(ranges) == std::vector<std::size_t>{900});
}

TEST_CASE("Neighbours grow together, but not across allocations") {
  Memory memory;
  Ranges ranges;
  ranges.put(memory.range(0, 100));
  ranges.put(memory.range(200, 300));
  CHECK(sizes(ranges) == std::vector<std::size_t>{100, 100});
  ranges.put(memory.range(100, 200));
  CHECK(sizes(ranges) == std::vector<std::size_t>{300});
  ranges.put({memory.bytes.data() + 300, 50, memory.bytes.data() + 300});
  CHECK(sizes(ranges) == std::vector<std::size_t>{300, 50});
  CHECK(ranges.contains(memory.range(10, 300)));
  CHECK(!ranges.contains(memory.range(10, 301)));

  Ranges others;
  others.put(memory.range(400, 500));
  others.put_all(ranges);
  CHECK(sizes(ranges).empty());
  CHECK(sizes(others) == std::vector<std::size_t>{300, 50, 100});
}

TEST_CASE("What is cut out is gone, whatever it overlaps") {
  Memory memory;
  Ranges ranges;
  ranges.put(memory.range(100, 200));
  ranges.put(memory.range(300, 400));
  CHECK(ranges.cut(memory.range(0, 100)) == 0);
  CHECK(ranges.cut(memory.range(150, 350)) == 100);
  CHECK(sizes(ranges) == std::vector<std::size_t>{50, 50});
  CHECK(ranges.cut(memory.range(110, 120)) == 10);
  CHECK(sizes(ranges) == std::vector<std::size_t>{10, 30, 50});
  CHECK(ranges.cut(memory.range(0, 4096)) == 90);
  CHECK(!ranges.take(1, any));
}

TEST_CASE("No two have the same byte, and in the end everything is one range") {
  Memory memory;
  Ranges ranges;
  ranges.put(memory.range(0, 4096));
  std::vector<Range> used;
  std::vector<int> owners(4096, 0);
  const auto mark = [&](const Range& r, int more) {
    for (std::size_t i = 0; i < r.bytes; ++i) owners[memory.at(r) + i] += more;
  };
  bool alone = true;
  deq::Random random(1, deq::Purpose::user);
  for (int step = 0; step < 3000; ++step) {
    if (random.below(2) == 0 || used.empty()) {
      if (const auto r = ranges.take(1 + random.below(300), any)) {
        mark(*r, 1);
        used.push_back(*r);
      }
    } else {
      std::swap(used[random.below(static_cast<std::uint32_t>(used.size()))], used.back());
      mark(used.back(), -1);
      ranges.put(used.back());
      used.pop_back();
    }
    for (const int n : owners) alone = alone && (n == 0 || n == 1);
  }
  CHECK(alone);
  for (const Range& r : used) ranges.put(r);
  CHECK(sizes(ranges) == std::vector<std::size_t>{4096});
}
