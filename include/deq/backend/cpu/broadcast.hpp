// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backend/cpu/cpu.hpp>
#include <deq/backend/geometry.hpp>

namespace deq {

namespace detail {

/// One operand along the innermost loop: contiguous, or one number.
template <class S>
struct Along {
  const S* data;
  S operator[](Index i) const { return data[i]; }
};
template <class S>
struct Fixed {
  S number;
  S operator[](Index) const { return number; }
};
template <class S>
struct Row {
  const S* data;
  Index stride;  ///< 0 or 1
};

/// body(Along or Fixed, ...) for the given rows: the stride becomes a type, so that loops
/// vectorise.
template <class Body>
void with_rows(Body&& body) {
  body();
}
template <class Body, class S, class... Rest>
void with_rows(Body&& body, Row<S> row, Rest... rest) {
  if (row.stride)
    with_rows([&](auto... more) { body(Along<S>{row.data}, more...); }, rest...);
  else
    with_rows([&](auto... more) { body(Fixed<S>{*row.data}, more...); }, rest...);
}

/// Some of the outer dimensions of a nest, counted through by one number.
template <std::size_t K>
struct OuterLoop {
  using Offsets = std::array<Index, K>;
  const LoopNest<K>& nest;
  std::array<std::size_t, static_cast<std::size_t>(Shape::max_rank)> dimension{};
  std::size_t rank = 0;
  Index count = 1;

  void add(std::size_t d) {
    dimension[rank++] = d;
    count *= nest.extent[d];
  }
  /// Where the operands are in iteration i, counted from `offset`.
  Offsets at(Index i, Offsets offset) const {
    for (std::size_t r = 0; r < rank; ++r) {
      const std::size_t d = dimension[r];
      const Index place = i % nest.extent[d];
      i /= nest.extent[d];
      for (std::size_t k = 0; k < K; ++k) offset[k] += place * nest.stride[k][d];
    }
    return offset;
  }
};

}  // namespace detail

/// out (+)= the sum of f(in...) over all positions of the nest that belong to the same element of
/// the output, operand 0. An output that covers the nest gives plain broadcasting, one with stride
/// 0 a reduction. Every element is summed by one thread, in one order.
template <class S, class Function, std::size_t K, class... In>
void broadcast_sum(Cpu<S>, const LoopNest<K>& nest, Function f, S* out, bool accumulate,
                   const In*... in) {
  static_assert(K == 1 + sizeof...(In), "one operand is the output, the others are the inputs");
  detail::OuterLoop<K> kept{nest}, reduced{nest};
  for (std::size_t d = 1; d < static_cast<std::size_t>(nest.rank); ++d)
    (nest.stride[0][d] ? kept : reduced).add(d);

  const Index length = nest.extent[0];
  const bool keeps_rows = nest.stride[0][0] != 0;
  const Index chunk = keeps_rows ? std::min<Index>(length, 4096) : length;
  const Index chunks = keeps_rows && length ? (length + chunk - 1) / chunk : 1;
  const Index targets = kept.count * chunks;
  const Index work = reduced.count * chunk;
  const Index group = std::max<Index>(1, 16384 / std::max<Index>(1, work));

  const auto row = [&](const std::array<Index, K>& offset, Index first, auto&& body) {
    std::size_t k = 0;
    const auto next = [&](const S* data) {
      ++k;
      return detail::Row<S>{data + offset[k] + first * nest.stride[k][0], nest.stride[k][0]};
    };
    std::array<detail::Row<S>, K - 1> rows{next(in)...};
    std::apply([&](auto... r) { detail::with_rows(body, r...); }, rows);
  };
  const auto one_target = [&](Index target) {
    const auto base = kept.at(target / chunks, {});
    const Index first = target % chunks * chunk, n = std::min(chunk, length - first);
    S total = 0;
    for (Index r = 0; r < reduced.count; ++r) {
      const auto offset = reduced.at(r, base);
      row(offset, first, [&](auto... x) {
        S* o = out + base[0] + first;
        if (!keeps_rows)
          total += detail::lane_sum<S>(n, [&](Index i) { return f(x[i]...); });
        else if (accumulate || r > 0)
          for (Index i = 0; i < n; ++i) o[i] += f(x[i]...);
        else
          for (Index i = 0; i < n; ++i) o[i] = f(x[i]...);
      });
    }
    if (!keeps_rows) out[base[0]] = accumulate ? out[base[0]] + total : total;
    if (keeps_rows && reduced.count == 0 && !accumulate)
      std::fill_n(out + base[0] + first, n, S(0));
  };
  parallel_for((targets + group - 1) / group,
               [&](Index task) {
                 const Index end = std::min(targets, (task + 1) * group);
                 for (Index t = task * group; t < end; ++t) one_target(t);
               },
               targets * work < 32768);
}

}  // namespace deq
