// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include <deq/core/host_pool.hpp>
#include <deq/model/mdeq_config.hpp>
#include <deq/tape/ops.hpp>

namespace deq {

/// The state (N, D) of an MDEQ holds the images of its branches one after the other, each
/// channels-last, (H, W, C), so that f finds them as its convolutions want them. The images (N, H,
/// W, C) of all branches.
template <TensorLike Z>
PoolVector<Z> mdeq_branches(const MdeqConfig& config, const Z& z) {
  PoolVector<Z> images;
  Index first = 0;
  Z::Backend::side_by_side(config.branches(), [&](Index i) {
    const Index side = config.resolution(i);
    images.push_back(nhwc::cut(z, first, {side, side, config.channels_of(i)}));
    first += config.branch_size(i);
  });
  return images;
}

/// The state (N, D) of images, one or more of them; the inverse of mdeq_branches.
template <TensorLike Z>
Z mdeq_state(const PoolVector<Z>& images) {
  return nhwc::join(std::span<const Z>(images));
}

namespace detail {
/// The state with the images of every branch changed, number by number.
template <TensorLike Z, class Change>
Z change_branches(const MdeqConfig& config, const Z& z, Change change) {
  PoolVector<Z> rows;
  Index first = 0;
  for (Index i = 0; i < config.branches(); ++i) {
    const Index size = config.branch_size(i);
    rows.push_back(
        flatten(change(slice(z, 1, first, size), config.resolution(i), config.channels_of(i))));
    first += size;
  }
  return concat(1, rows);
}
}  // namespace detail

/// A state as the original's code has it, each branch as (C, H, W).
template <TensorLike Z>
Z mdeq_state_to_nchw(const MdeqConfig& config, const Z& z) {
  return detail::change_branches(config, z, [&](const Z& branch, Index side, Index channels) {
    return nhwc::to_nchw(reshape(branch, {z.extent(0), side, side, channels}));
  });
}

/// The inverse of mdeq_state_to_nchw.
template <TensorLike Z>
Z mdeq_state_from_nchw(const MdeqConfig& config, const Z& z) {
  return detail::change_branches(config, z, [&](const Z& branch, Index side, Index channels) {
    return nhwc::from_nchw(reshape(branch, {z.extent(0), channels, side, side}));
  });
}

}  // namespace deq
