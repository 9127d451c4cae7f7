// SPDX-License-Identifier: MIT
#pragma once

#include <deq/core/host_pool.hpp>
#include <deq/model/mdeq_config.hpp>
#include <deq/tape/ops.hpp>

namespace deq {

/// The state (N, D) of an MDEQ holds the images of its branches one after the other, each
/// channels-last, (H, W, C), so that f finds them as its convolutions want them. The images (N, H,
/// W, C) of all branches; of a single sample they share its memory.
template <TensorLike Z>
PoolVector<Z> mdeq_branches(const MdeqConfig& config, const Z& z) {
  PoolVector<Z> images;
  Index first = 0;
  for (Index i = 0; i < config.branches(); ++i) {
    const Index side = config.resolution(i), size = config.branch_size(i);
    images.push_back(
        reshape(slice(z, 1, first, size), {z.extent(0), side, side, config.channels_of(i)}));
    first += size;
  }
  return images;
}

/// The state (N, D) of images, one or more of them; the inverse of mdeq_branches.
template <TensorLike Z>
Z mdeq_state(const PoolVector<Z>& images) {
  PoolVector<Z> rows;
  for (const Z& image : images) rows.push_back(flatten(image));
  return concat(1, rows);
}

/// A state as the original's code has it, each branch as (C, H, W).
template <TensorLike Z>
Z mdeq_state_to_nchw(const MdeqConfig& config, const Z& z) {
  PoolVector<Z> rows;
  for (const Z& image : mdeq_branches(config, z)) rows.push_back(flatten(nhwc::to_nchw(image)));
  return concat(1, rows);
}

/// The inverse of mdeq_state_to_nchw.
template <TensorLike Z>
Z mdeq_state_from_nchw(const MdeqConfig& config, const Z& z) {
  PoolVector<Z> images;
  Index first = 0;
  for (Index i = 0; i < config.branches(); ++i) {
    const Index side = config.resolution(i), size = config.branch_size(i);
    images.push_back(nhwc::from_nchw(
        reshape(slice(z, 1, first, size), {z.extent(0), config.channels_of(i), side, side})));
    first += size;
  }
  return mdeq_state(images);
}

}  // namespace deq
