// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>

#include <deq/core/error.hpp>
#include <deq/core/types.hpp>
#include <deq/solver/stopping.hpp>

namespace deq {

/// How a batch is cut into blocks: a thread carries one block at a time through the whole solve,
/// while it stays in its cache. The blocks do not depend on the number of threads, so neither do
/// the results.
struct Schedule {
  /// Samples a block; 0 chooses at most 44 Ki numbers of state, or an eighth of the parameters if
  /// that is more, since every block reads all of them, at most 64 samples, and blocks of about one
  /// size.
  Index block = 0;

  /// For backends that take a batch in blocks.
  Index block_size(Index dim, Index parameters, Index count, Scope scope) const {
    require(block >= 0, "Schedule: block must be >= 0, got ", block);
    if (scope == Scope::batch) return count;
    if (block > 0) return block;
    const Index state = std::max<Index>(45056, parameters / 8);
    const Index most = std::clamp<Index>(state / std::max<Index>(dim, 1), 1, 64);
    Index blocks = std::max<Index>(1, (count + most - 1) / most);
    if (blocks > 1) blocks += blocks % 2;  // so that two threads are done together
    return (count + blocks - 1) / blocks;
  }
};

}  // namespace deq
