// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>

#include <deq/backend/cpu/cpu.hpp>

namespace deq {

namespace detail {
/// body(row) for every row; shared by the team when it is worth waking.
template <class Body>
void for_each_row(Index rows, Index width, Body body) {
  parallel_for(rows, body, rows * width < 4096);
}
}  // namespace detail

/// y = x - log sum exp(x) in every row; the largest x is taken out first, so nothing overflows.
template <class S>
void log_softmax_forward(Cpu<S>, Index rows, Index width, const S* x, S* y) {
  detail::for_each_row(rows, width, [=](Index row) {
    const S* in = x + row * width;
    S* out = y + row * width;
    const S top = *std::max_element(in, in + width);
    const S log_sum =
        std::log(detail::lane_sum<S>(width, [=](Index i) { return std::exp(in[i] - top); }));
    for (Index i = 0; i < width; ++i) out[i] = in[i] - top - log_sum;
  });
}

/// dx (+)= dy - exp(y) sum(dy) in every row.
template <class S>
void log_softmax_vjp(Cpu<S>, Index rows, Index width, const S* y, const S* dy, S* dx,
                     bool accumulate) {
  detail::for_each_row(rows, width, [=](Index row) {
    const S *out = y + row * width, *c = dy + row * width;
    const S total = detail::lane_sum<S>(width, [=](Index i) { return c[i]; });
    for (Index i = 0; i < width; ++i) {
      const S d = c[i] - std::exp(out[i]) * total;
      dx[row * width + i] = accumulate ? dx[row * width + i] + d : d;
    }
  });
}

/// dx (+)= y (dy - sum(dy y)) in every row.
template <class S>
void softmax_vjp(Cpu<S>, Index rows, Index width, const S* y, const S* dy, S* dx, bool accumulate) {
  detail::for_each_row(rows, width, [=](Index row) {
    const S *out = y + row * width, *c = dy + row * width;
    const S along = detail::dot(out, c, width);
    for (Index i = 0; i < width; ++i) {
      const S d = out[i] * (c[i] - along);
      dx[row * width + i] = accumulate ? dx[row * width + i] + d : d;
    }
  });
}

/// *loss = -mean over the rows of log_p[row, label].
template <class S>
void cross_entropy_forward(Cpu<S>, Index rows, Index width, const S* log_p, const Index* label,
                           S* loss) {
  *loss = -detail::lane_sum<S>(rows, [=](Index n) { return log_p[n * width + label[n]]; }) /
          static_cast<S>(rows);
}

/// dx (+)= *dloss / rows (p - onehot(label)), p = exp(log_p).
template <class S>
void cross_entropy_vjp(Cpu<S>, Index rows, Index width, const S* log_p, const Index* label,
                       const S* dloss, S* dx, bool accumulate) {
  const S scale = *dloss / static_cast<S>(rows);
  detail::for_each_row(rows, width, [=](Index n) {
    for (Index i = n * width; i < (n + 1) * width; ++i) {
      const S d = scale * (std::exp(log_p[i]) - (i == n * width + label[n] ? S(1) : S(0)));
      dx[i] = accumulate ? dx[i] + d : d;
    }
  });
}

}  // namespace deq
