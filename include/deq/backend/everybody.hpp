// SPDX-License-Identifier: MIT
#pragma once

#include <numeric>
#include <vector>

#include <deq/backend/array.hpp>

namespace deq {

/// The set of all samples 0, 1, ..., n - 1 in the memory of backend B; grows when it must.
template <class B>
class Everybody {
 public:
  Samples operator()(Index count) {
    if (ids_.size() < count) {
      std::vector<Index> host(static_cast<std::size_t>(count));
      std::iota(host.begin(), host.end(), Index{0});
      ids_.resize(count);
      B::upload_bytes(ids_.data(), host.data(), host.size() * sizeof(Index));
    }
    return {ids_.data(), count};
  }

 private:
  Array<B, Index> ids_;
};

}  // namespace deq
