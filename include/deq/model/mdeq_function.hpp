// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include <deq/core/host_pool.hpp>
#include <deq/model/mdeq_state.hpp>

namespace deq {

namespace detail {

/// Hands out a list in order: the reading side of what MdeqLayout declares.
template <class V>
class Cursor {
 public:
  explicit Cursor(std::span<const V> list) : rest_(list) {}
  const V& next() {
    require(!rest_.empty(), "Mdeq: the list of parameters is too short");
    const V& front = rest_.front();
    rest_ = rest_.subspan(1);
    return front;
  }
  bool empty() const { return rest_.empty(); }

 private:
  std::span<const V> rest_;
};

}  // namespace detail

/// The layer f of MDEQ (MDEQ-SPEC.md, section 4; the original's MDEQModule):
///
///     block    a_i = relu(GN(conv3(z_i)))
///              c_i = relu(GN(drop_i(conv3(a_i)) + x_i) + z_i)
///              b_i = GN(c_i)
///     fuse     s_i = sum_j T_ij(b_j)
///     post     z_i' = GN_half(conv1(relu(s_i)))
///
/// T_ij is the identity, a 1x1 conv, GN and upsampling, or strided 3x3 convs, each with a GN.
///
/// z is (N, D), an mdeq_state. The per-sample inputs are the injections (N, H, W, C) of the first
/// branches (any number of them, zero for the others), then, in training with dropout, one mask (N,
/// C_i, 1, 1) for every branch. Each line of a block, each convolution of a path T_ij and `post` is
/// one operation on channels-last images. The parameters are the effective ones, weight norm
/// applied, in the order of MdeqLayout. No BatchNorm: samples do not influence each other, bit for
/// bit. Branches wait for each other between the lines only, and the paths T_ij not at all.
struct MdeqFunction {
  MdeqConfig config;
  bool dropout = false;  ///< masks follow the injections

  template <TensorLike V>
  V operator()(const V& z, std::span<const V> x, std::span<const V> theta) const {
    const auto masks = dropout ? static_cast<std::size_t>(config.branches()) : 0;
    require(x.size() >= masks, "MdeqFunction: needs ", masks, " dropout masks");
    const std::span<const V> injections = x.first(x.size() - masks), drops = x.last(masks);
    const auto branches = static_cast<std::size_t>(config.branches());
    require(theta.size() >= branches, "MdeqFunction: the list of parameters is too short");
    detail::Cursor<V> p(theta.first(theta.size() - branches)), post(theta.last(branches));

    const PoolVector<V> images = mdeq_branches(config, z);
    PoolVector<V> b, sent, out;
    side_by_side(z, config.branches(), [&](Index branch) {
      const auto i = static_cast<std::size_t>(branch);
      b.push_back(block(images[i], i < injections.size() ? &injections[i] : nullptr,
                        dropout ? &drops[i] : nullptr, p));
    });
    // Where a device does several things at once, every path is one of them, and what arrives is
    // added in one pass; elsewhere it is added on the way.
    const Index others = config.branches() - 1;
    constexpr bool apart = V::Backend::concurrent;
    const auto sender = [](Index i, Index k) { return k < i ? k : k + 1; };  // number k to branch i
    if (apart)
      side_by_side(z, config.branches() * others, [&](Index k) {
        const Index i = k / others;
        sent.push_back(path(sender(i, k % others), i, b, nullptr, false, p));
      });
    side_by_side(z, config.branches(), [&](Index i) {
      V s = b[static_cast<std::size_t>(i)];
      if (apart && others > 0) {
        PoolVector<V> summands{s};
        PoolVector<Index> factors;
        for (Index k = 0; k < others; ++k) {
          const Index j = sender(i, k);
          summands.push_back(sent[static_cast<std::size_t>(i * others + k)]);
          factors.push_back(j > i ? Index{1} << (j - i) : 1);
        }
        s = nhwc::upsample_add(std::span<const V>(summands), std::span<const Index>(factors), true);
      }
      for (Index k = 0; k < others && !apart; ++k) {
        const bool relu = k + 1 == others;  // nothing is added any more
        s = path(sender(i, k), i, b, &s, relu, p);
      }
      out.push_back(nhwc::conv_norm(s, post.next(), {.groups = config.groups / 2}));
    });
    return mdeq_state(out);
  }

 private:
  /// relu(GN(conv(x) mask + addend) + residual), the last norm's parameters after the weight's.
  template <class V>
  V conv_norm(const V& x, detail::Cursor<V>& p, Conv2dOptions conv, bool relu,
              nhwc::ConvNormParts<V> parts = {}) const {
    const V& weight = p.next();
    parts.scale = &p.next();
    parts.shift = &p.next();
    return nhwc::conv_norm(x, weight, {.groups = config.groups, .conv = conv, .relu = relu}, parts);
  }

  /// The residual block of one branch; mind ReLU first, then the last norm.
  template <class V>
  V block(const V& z, const V* injection, const V* mask, detail::Cursor<V>& p) const {
    constexpr Conv2dOptions same{.padding = 1};
    V a = conv_norm(z, p, same, true);
    a = conv_norm(a, p, same, true, {.mask = mask, .addend = injection, .residual = &z});
    const V& weight = p.next();
    const bool alone = config.branches() == 1;  // then nothing is added before the fusion's relu
    return nhwc::group_norm(a, {.groups = config.groups, .relu = alone}, weight, p.next());
  }

  /// T_ij(b_j), what branch j sends to branch i, before it is enlarged. Given a sum: that sum with
  /// what arrives added, rectified if `relu`.
  template <class V>
  V path(Index j, Index i, const PoolVector<V>& b, std::type_identity_t<const V*> sum, bool relu,
         detail::Cursor<V>& p) const {
    V t = b[static_cast<std::size_t>(j)];
    if (j > i) {
      t = conv_norm(t, p, {}, false);
      return sum ? nhwc::upsample_add(*sum, t, Index{1} << (j - i), relu) : t;
    }
    for (Index q = j; q < i; ++q) {
      const bool arrives = q + 1 == i;
      t = conv_norm(t, p, {.stride = 2, .padding = 1}, !arrives || relu,
                    {.residual = arrives ? sum : nullptr});
    }
    return t;
  }
};

}  // namespace deq
