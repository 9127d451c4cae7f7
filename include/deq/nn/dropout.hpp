// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include <deq/core/random.hpp>
#include <deq/tape/tensor.hpp>

namespace deq {

/// Which random numbers a mask is made of. A mask is a pure function of these and of the sample's
/// id: the same in any batch and for any number of threads.
struct DropoutKey {
  std::uint64_t seed = 0;
  std::uint32_t step = 0;   ///< training step; a new mask each
  std::uint32_t layer = 0;  ///< masks of several places in one network are independent
};

/// A mask for variational dropout, to be multiplied on by broadcasting: entries 0 with probability
/// p, otherwise 1 / (1 - p). shape is (N, ...), one entry a channel as in (N, C, 1, 1); ids[n] says
/// which sample of the data row n is. Drawn on the host. Throws InvalidArgument unless 0 <= p < 1.
template <BackendMemory B>
Tensor<B> dropout_mask(const Shape& shape, double p, const DropoutKey& key,
                       std::span<const Index> ids) {
  using S = typename B::Scalar;
  require(p >= 0 && p < 1, "dropout_mask: p must be in [0, 1), got ", p);
  require<ShapeError>(shape.rank() >= 1 && shape[0] == static_cast<Index>(ids.size()),
                      "dropout_mask: shape ", shape, " needs one id a sample, got ", ids.size());
  PoolVector<S> mask;
  mask.reserve(static_cast<std::size_t>(shape.size()));
  // Neighbouring keys of Philox give unrelated streams; the odd constant spreads layers over the
  // seeds.
  const std::uint64_t seed = key.seed + key.layer * std::uint64_t{0x9E3779B97F4A7C15};
  const S kept = static_cast<S>(1 / (1 - p));
  for (const Index id : ids) {
    Random random(seed, Purpose::dropout, key.step, static_cast<std::uint32_t>(id));
    for (Index c = 0; c < shape.product(1, shape.rank()); ++c)
      mask.push_back(random.uniform() < p ? S(0) : kept);
  }
  return Tensor<B>(shape, mask);
}
/// The same for samples numbered first_sample, first_sample + 1, ...
template <BackendMemory B>
Tensor<B> dropout_mask(const Shape& shape, double p, const DropoutKey& key,
                       Index first_sample = 0) {
  PoolVector<Index> ids(static_cast<std::size_t>(shape.rank() ? shape[0] : 0));
  for (std::size_t n = 0; n < ids.size(); ++n) ids[n] = first_sample + static_cast<Index>(n);
  return dropout_mask<B>(shape, p, key, ids);
}

}  // namespace deq
