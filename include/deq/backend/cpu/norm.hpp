// SPDX-License-Identifier: MIT
// Means and variances are taken in two passes, so that a large mean costs no accuracy.
#pragma once

#include <cmath>

#include <deq/backend/cpu/cpu.hpp>
#include <deq/backend/geometry.hpp>

namespace deq {

namespace detail {

/// The sum of term(i, s) over the elements i of one channel, s being the statistic they belong to.
template <class S, class Term>
S channel_sum(const NormGeometry& g, Index channel, Term term) {
  if (g.pixels == 1)
    return lane_sum<S>(
        g.samples, [&](Index n) { return term(g.offset(n, channel), g.statistic(n, channel)); });
  S sum = 0;
  for (Index n = 0; n < g.samples; ++n) {
    const Index first = g.offset(n, channel), s = g.statistic(n, channel);
    sum += lane_sum<S>(g.pixels, [&](Index p) { return term(first + p, s); });
  }
  return sum;
}

/// The sum of weight(channel) * term(i) over the elements i of the channels [first, first + n) of
/// one sample; a null weight is 1.
template <class S, class Term>
S block_sum(const NormGeometry& g, Index sample, Index first, Index n, const S* weight, Term term) {
  const Index start = g.offset(sample, first);
  if (!weight) return lane_sum<S>(n * g.pixels, [&](Index i) { return term(start + i); });
  if (g.pixels == 1)
    return lane_sum<S>(n, [&](Index c) { return weight[first + c] * term(start + c); });
  S sum = 0;
  for (Index c = 0; c < n; ++c) {
    const Index row = start + c * g.pixels;
    sum += weight[first + c] * lane_sum<S>(g.pixels, [&](Index p) { return term(row + p); });
  }
  return sum;
}

inline bool small(const NormGeometry& g) { return g.samples * g.channels * g.pixels < 16384; }

}  // namespace detail

/// mean and inverse deviation 1/sqrt(variance + eps) of every group of channels of every sample.
template <class S>
void group_statistics(Cpu<S>, const NormGeometry& g, S eps, const S* x, S* mean, S* inverse) {
  const Index size = g.channels_per_statistic * g.pixels;
  const S count = static_cast<S>(size);
  parallel_for(
      g.samples * g.groups(),
      [=](Index s) {
        const S* group = x + s * size;
        const S m = detail::lane_sum<S>(size, [=](Index i) { return group[i]; }) / count;
        const S variance = detail::lane_sum<S>(size,
                                               [=](Index i) {
                                                 const S d = group[i] - m;
                                                 return d * d;
                                               }) /
                           count;
        mean[s] = m;
        inverse[s] = 1 / std::sqrt(variance + eps);
      },
      detail::small(g));
}

/// mean and biased variance of every channel over the batch.
template <class S>
void batch_statistics(Cpu<S>, const NormGeometry& g, const S* x, S* mean, S* variance) {
  const S count = static_cast<S>(g.samples * g.pixels);
  parallel_for(
      g.channels,
      [=](Index c) {
        const S m = detail::channel_sum<S>(g, c, [=](Index i, Index) { return x[i]; }) / count;
        mean[c] = m;
        variance[c] = detail::channel_sum<S>(g, c,
                                             [=](Index i, Index) {
                                               const S d = x[i] - m;
                                               return d * d;
                                             }) /
                      count;
      },
      detail::small(g));
}

/// y = (x - mean) * inverse * weight + bias; a null weight is 1, a null bias 0.
template <class S>
void normalize(Cpu<S>, const NormGeometry& g, const S* x, const S* mean, const S* inverse,
               const S* weight, const S* bias, S* y) {
  parallel_for(
      g.samples,
      [=](Index n) {
        for (Index c = 0; c < g.channels; ++c) {
          const Index first = g.offset(n, c), s = g.statistic(n, c);
          const S m = mean[s], scale = inverse[s] * (weight ? weight[c] : S(1));
          const S shift = bias ? bias[c] : S(0);
          for (Index i = first; i < first + g.pixels; ++i) y[i] = (x[i] - m) * scale + shift;
        }
      },
      detail::small(g));
}

/// dw_c (+)= sum over samples and pixels of dy * (x - mean) * inverse.
template <class S>
void normalize_vjp_weight(Cpu<S>, const NormGeometry& g, const S* x, const S* mean,
                          const S* inverse, const S* dy, S* dw, bool accumulate) {
  parallel_for(
      g.channels,
      [=](Index c) {
        const S sum = detail::channel_sum<S>(
            g, c, [=](Index i, Index s) { return dy[i] * ((x[i] - mean[s]) * inverse[s]); });
        dw[c] = accumulate ? dw[c] + sum : sum;
      },
      detail::small(g));
}

/// dx (+)= inverse (d - mean(d) - u mean(d u)), u = (x - mean) inverse, d = weight dy, the means
/// over each group.
template <class S>
void group_norm_vjp_input(Cpu<S>, const NormGeometry& g, const S* x, const S* mean,
                          const S* inverse, const S* weight, const S* dy, S* dx, bool accumulate) {
  const Index width = g.channels_per_statistic;
  const S count = static_cast<S>(width * g.pixels);
  parallel_for(
      g.samples * g.groups(),
      [=](Index s) {
        const Index n = s / g.groups(), first = s % g.groups() * width;
        const S m = mean[s], r = inverse[s];
        const S mean_d =
            detail::block_sum(g, n, first, width, weight, [=](Index i) { return dy[i]; }) / count;
        const S mean_du = detail::block_sum(g, n, first, width, weight,
                                            [=](Index i) { return dy[i] * ((x[i] - m) * r); }) /
                          count;
        for (Index c = first; c < first + width; ++c) {
          const S scale = weight ? weight[c] : S(1);
          const Index begin = g.offset(n, c), end = begin + g.pixels;
          const auto value = [=](Index i) {
            return r * (scale * dy[i] - mean_d - (x[i] - m) * r * mean_du);
          };
          if (accumulate)
            for (Index i = begin; i < end; ++i) dx[i] += value(i);
          else
            for (Index i = begin; i < end; ++i) dx[i] = value(i);
        }
      },
      detail::small(g));
}

/// The same for statistics of the batch; with `constant_statistics` (the running ones) the mean and
/// the deviation do not depend on x, and dx (+)= inverse weight dy.
template <class S>
void batch_norm_vjp_input(Cpu<S>, const NormGeometry& g, bool constant_statistics, const S* x,
                          const S* mean, const S* inverse, const S* weight, const S* dy, S* dx,
                          bool accumulate) {
  const S count = static_cast<S>(g.samples * g.pixels);
  parallel_for(
      g.channels,
      [=](Index c) {
        const S m = mean[c], r = inverse[c], scale = r * (weight ? weight[c] : S(1));
        S mean_d = 0, mean_du = 0;
        if (!constant_statistics) {
          mean_d = detail::channel_sum<S>(g, c, [=](Index i, Index) { return dy[i]; }) / count;
          mean_du = detail::channel_sum<S>(
                        g, c, [=](Index i, Index) { return dy[i] * ((x[i] - m) * r); }) /
                    count;
        }
        for (Index n = 0; n < g.samples; ++n) {
          const Index begin = g.offset(n, c), end = begin + g.pixels;
          const auto value = [=](Index i) {
            return scale * (dy[i] - mean_d - (x[i] - m) * r * mean_du);
          };
          if (accumulate)
            for (Index i = begin; i < end; ++i) dx[i] += value(i);
          else
            for (Index i = begin; i < end; ++i) dx[i] = value(i);
        }
      },
      detail::small(g));
}

/// y_o = v_o g_o / ||v_o||, norm_o = ||v_o||; v is rows x width.
template <class S>
void weight_norm_forward(Cpu<S>, Index rows, Index width, const S* v, const S* g, S* y, S* norm) {
  parallel_for(
      rows,
      [=](Index o) {
        const S* row = v + o * width;
        norm[o] = std::sqrt(detail::dot(row, row, width));
        const S scale = g[o] / norm[o];
        for (Index i = 0; i < width; ++i) y[o * width + i] = row[i] * scale;
      },
      rows * width < 16384);
}

/// dv_o (+)= g_o / ||v_o|| (dy_o - u_o (u_o . dy_o)), u_o = v_o / ||v_o||.
template <class S>
void weight_norm_vjp_v(Cpu<S>, Index rows, Index width, const S* v, const S* g, const S* norm,
                       const S* dy, S* dv, bool accumulate) {
  parallel_for(
      rows,
      [=](Index o) {
        const S *row = v + o * width, *c = dy + o * width;
        S* out = dv + o * width;
        const S scale = g[o] / norm[o];
        const S along = detail::dot(row, c, width) / (norm[o] * norm[o]);
        if (accumulate)
          for (Index i = 0; i < width; ++i) out[i] += scale * (c[i] - row[i] * along);
        else
          for (Index i = 0; i < width; ++i) out[i] = scale * (c[i] - row[i] * along);
      },
      rows * width < 16384);
}

/// dg_o (+)= u_o . dy_o.
template <class S>
void weight_norm_vjp_g(Cpu<S>, Index rows, Index width, const S* v, const S* norm, const S* dy,
                       S* dg, bool accumulate) {
  parallel_for(
      rows,
      [=](Index o) {
        const S d = detail::dot(v + o * width, dy + o * width, width) / norm[o];
        dg[o] = accumulate ? dg[o] + d : d;
      },
      rows * width < 16384);
}

}  // namespace deq
