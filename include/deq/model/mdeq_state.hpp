// SPDX-License-Identifier: MIT
#pragma once

#include <deq/core/host_pool.hpp>
#include <deq/model/mdeq_config.hpp>
#include <deq/tape/ops.hpp>

namespace deq {

namespace detail {
/// The parts of a state (N, D) that belong to the branches, branch i in the shape shape(side,
/// channels).
template <TensorLike Z, class ShapeOf>
PoolVector<Z> cut_state(const MdeqConfig& config, const Z& z, ShapeOf shape) {
  PoolVector<Z> parts;
  Index first = 0;
  for (Index i = 0; i < config.branches(); ++i) {
    const Index size = config.branch_size(i);
    parts.push_back(
        reshape(slice(z, 1, first, size), shape(config.resolution(i), config.channels_of(i))));
    first += size;
  }
  return parts;
}
}  // namespace detail

/// The state (N, D) of an MDEQ holds the images of its branches one after the other, each
/// channels-last, (H, W, C), so that f finds them as its convolutions want them. The images (N, H,
/// W, C) of all branches; of a single sample they share its memory.
template <TensorLike Z>
PoolVector<Z> mdeq_branches(const MdeqConfig& config, const Z& z) {
  return detail::cut_state(config, z, [&](Index side, Index channels) {
    return Shape{z.extent(0), side, side, channels};
  });
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
  PoolVector<Z> images = mdeq_branches(config, z);
  for (Z& image : images) image = nhwc::to_nchw(image);
  return mdeq_state(images);
}

/// The inverse of mdeq_state_to_nchw.
template <TensorLike Z>
Z mdeq_state_from_nchw(const MdeqConfig& config, const Z& z) {
  PoolVector<Z> images = detail::cut_state(config, z, [&](Index side, Index channels) {
    return Shape{z.extent(0), channels, side, side};
  });
  for (Z& image : images) image = nhwc::from_nchw(image);
  return mdeq_state(images);
}

}  // namespace deq
