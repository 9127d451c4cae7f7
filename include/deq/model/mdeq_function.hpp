// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include <deq/model/mdeq_config.hpp>
#include <deq/tape/ops.hpp>

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
///     block    a = relu(GN(conv3(z_i)));  a = drop_i(conv3(a)) + x_i;  b_i = GN(relu(GN(a) + z_i))
///     fuse     s_i = sum_j T_ij(b_j),  T_ij: identity, 1x1 conv + GN + upsampling, or strided 3x3
///     convs + GN post     z_i' = GN_half(conv1(relu(s_i)))
///
/// z is (N, D). The per-sample inputs are the injections of the first branches (any number of them,
/// zero for the others), then, in training with dropout, one mask (N, C_i, 1, 1) for every branch.
/// The parameters are the effective ones, weight norm applied, in the order of MdeqLayout. No
/// BatchNorm: samples do not influence each other, bit for bit.
struct MdeqFunction {
  MdeqConfig config;
  bool dropout = false;  ///< masks follow the injections

  template <TensorLike V>
  V operator()(const V& z, std::span<const V> x, std::span<const V> theta) const {
    const auto masks = dropout ? static_cast<std::size_t>(config.branches()) : 0;
    require(x.size() >= masks, "MdeqFunction: needs ", masks, " dropout masks");
    const std::span<const V> injections = x.first(x.size() - masks), drops = x.last(masks);
    detail::Cursor<V> p(theta);

    std::vector<V> b;
    Index first = 0;
    for (Index i = 0; i < config.branches(); ++i) {
      const auto u = static_cast<std::size_t>(i);
      const Index side = config.resolution(i);
      const V zi = reshape(slice(z, 1, first, config.branch_size(i)),
                           {z.extent(0), config.channels_of(i), side, side});
      b.push_back(block(zi, u < injections.size() ? &injections[u] : nullptr,
                        dropout ? &drops[u] : nullptr, p));
      first += config.branch_size(i);
    }
    std::vector<V> s;
    for (Index i = 0; i < config.branches(); ++i) s.push_back(fuse(i, b, p));
    std::vector<V> out;
    for (const V& si : s) {
      const V normed = group_norm(conv2d(relu(si), p.next()), config.groups / 2);
      out.push_back(reshape(normed, {z.extent(0), normed.shape().product(1, 4)}));
    }
    return concat(1, std::span<const V>(out));
  }

 private:
  template <class V>
  V normalise(const V& a, detail::Cursor<V>& p) const {
    const V& weight = p.next();
    return group_norm(a, config.groups, weight, p.next());
  }

  /// The residual block of one branch; mind ReLU first, then the last norm.
  template <class V>
  V block(const V& z, const V* injection, const V* mask, detail::Cursor<V>& p) const {
    V a = conv2d(z, p.next(), {.padding = 1});
    a = relu(normalise(a, p));
    a = conv2d(a, p.next(), {.padding = 1});
    if (mask) a = a * *mask;
    if (injection) a = a + *injection;
    a = normalise(a, p) + z;
    return normalise(relu(a), p);
  }

  /// s_i, the sum over all branches j of what they send to branch i.
  template <class V>
  V fuse(Index i, const std::vector<V>& b, detail::Cursor<V>& p) const {
    V sum;
    for (Index j = 0; j < config.branches(); ++j) {
      V t = b[static_cast<std::size_t>(j)];
      if (j > i) t = upsample_nearest(normalise(conv2d(t, p.next()), p), Index{1} << (j - i));
      for (Index q = j; q < i; ++q) {
        t = normalise(conv2d(t, p.next(), {.stride = 2, .padding = 1}), p);
        if (q + 1 < i) t = relu(t);
      }
      sum = j == 0 ? t : sum + t;
    }
    return sum;
  }
};

}  // namespace deq
