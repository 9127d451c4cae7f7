// SPDX-License-Identifier: MIT
// Means and variances are taken in two passes, so that a large mean costs no accuracy.
#pragma once

#include <cmath>

#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/cuda/pointwise.cuh>
#include <deq/backend/cuda/team.cuh>
#include <deq/backend/geometry.hpp>

namespace deq {

namespace cuda {

/// The geometry of statistics of the batch, one a channel.
inline NormGeometry of_batch(NormGeometry g) {
  g.channels_per_statistic = 1;
  g.shared = true;
  return g;
}
/// Where number i of one channel of all samples is.
__device__ inline Index in_channel(const NormGeometry& g, Index channel, Index i) {
  return g.offset(i / g.pixels, channel) + i % g.pixels;
}
/// Where number i of those that statistic s is taken of is.
__device__ inline Index in_statistic(const NormGeometry& g, Index s, Index i) {
  return g.shared ? in_channel(g, s, i) : s * g.count() + i;
}

/// put(s, mean, biased variance) of every statistic.
template <class S, class Put>
void take_moments(const NormGeometry& g, const S* x, Put put) {
  for_each_team<threads>(g.statistics(), [=] __device__(Index s, Block block) {
    const Index n = g.count();
    const S count = static_cast<S>(n);
    const S mean = block.sum(n, [&](Index i) { return x[in_statistic(g, s, i)]; }) / count;
    const S squares = block.sum(n, [&](Index i) {
      const S d = x[in_statistic(g, s, i)] - mean;
      return d * d;
    });
    if (block.rank == 0) put(s, mean, squares / count);
  });
}

/// dx (+)= inverse (d - mean(d) - u mean(d u)), u = (x - mean) inverse, d = weight dy, the means
/// over the numbers of each statistic; those are 0 if the statistics are constants.
template <class S>
void norm_vjp_input(const NormGeometry& g, bool constant_statistics, const S* x, const S* mean,
                    const S* inverse, const S* weight, const S* dy, S* dx, bool accumulate) {
  for_each_team<threads>(g.statistics(), [=] __device__(Index s, Block block) {
    const Index n = g.count();
    const S m = mean[s], r = inverse[s];
    const auto d = [&](Index k) {
      return (weight ? weight[k / g.pixels % g.channels] : S(1)) * dy[k];
    };
    S means[2] = {};
    if (!constant_statistics) {
      block.for_each(n, [&](Index i) {
        const Index k = in_statistic(g, s, i);
        means[0] += d(k);
        means[1] += d(k) * ((x[k] - m) * r);
      });
      block.add(means);
      for (S& sum : means) sum /= static_cast<S>(n);
    }
    block.for_each(n, [&](Index i) {
      const Index k = in_statistic(g, s, i);
      put(dx[k], r * (d(k) - means[0] - (x[k] - m) * r * means[1]), accumulate);
    });
  });
}

}  // namespace cuda

/// mean and inverse deviation 1/sqrt(variance + eps) of every group of channels of every sample.
template <class S>
void group_statistics(Cuda<S>, const NormGeometry& g, S eps, const S* x, S* mean, S* inverse) {
  cuda::take_moments(g, x, [=] __device__(Index s, S m, S variance) {
    mean[s] = m;
    inverse[s] = 1 / std::sqrt(variance + eps);
  });
}

/// mean and biased variance of every channel over the batch.
template <class S>
void batch_statistics(Cuda<S>, const NormGeometry& g, const S* x, S* mean, S* variance) {
  cuda::require_all_rows(g.samples, "statistics of a batch");
  cuda::take_moments(cuda::of_batch(g), x, [=] __device__(Index c, S m, S v) {
    mean[c] = m;
    variance[c] = v;
  });
}

/// y = (x - mean) * inverse * weight + bias; a null weight is 1, a null bias 0.
template <class S>
void normalize(Cuda<S>, const NormGeometry& g, const S* x, const S* mean, const S* inverse,
               const S* weight, const S* bias, S* y) {
  cuda::for_each_index(g.samples * g.channels * g.pixels, [=] __device__(Index i) {
    const Index plane = i / g.pixels, c = plane % g.channels,
                s = g.statistic(plane / g.channels, c);
    y[i] = (x[i] - mean[s]) * (inverse[s] * (weight ? weight[c] : S(1))) + (bias ? bias[c] : S(0));
  });
}

/// dw_c (+)= sum over samples and pixels of dy * (x - mean) * inverse.
template <class S>
void normalize_vjp_weight(Cuda<S>, const NormGeometry& g, const S* x, const S* mean,
                          const S* inverse, const S* dy, S* dw, bool accumulate) {
  cuda::for_each_team<cuda::threads>(g.channels, [=] __device__(Index c, cuda::Block block) {
    const S sum = block.sum(g.samples * g.pixels, [&](Index i) {
      const Index k = cuda::in_channel(g, c, i), s = g.statistic(i / g.pixels, c);
      return dy[k] * ((x[k] - mean[s]) * inverse[s]);
    });
    if (block.rank == 0) cuda::put(dw[c], sum, accumulate);
  });
}

/// dx (+)= inverse (d - mean(d) - u mean(d u)), u = (x - mean) inverse, d = weight dy, the means
/// over each group.
template <class S>
void group_norm_vjp_input(Cuda<S>, const NormGeometry& g, const S* x, const S* mean,
                          const S* inverse, const S* weight, const S* dy, S* dx, bool accumulate) {
  cuda::norm_vjp_input(g, false, x, mean, inverse, weight, dy, dx, accumulate);
}

/// The same for statistics of the batch; with `constant_statistics` (the running ones) the mean and
/// the deviation do not depend on x, and dx (+)= inverse weight dy.
template <class S>
void batch_norm_vjp_input(Cuda<S>, const NormGeometry& g, bool constant_statistics, const S* x,
                          const S* mean, const S* inverse, const S* weight, const S* dy, S* dx,
                          bool accumulate) {
  cuda::norm_vjp_input(cuda::of_batch(g), constant_statistics, x, mean, inverse, weight, dy, dx,
                       accumulate);
}

/// y_o = v_o g_o / ||v_o||, norm_o = ||v_o||; v is rows x width.
template <class S>
void weight_norm_forward(Cuda<S>, Index rows, Index width, const S* v, const S* g, S* y, S* norm) {
  cuda::for_each_team<cuda::threads>(rows, [=] __device__(Index o, cuda::Block block) {
    const S* row = v + o * width;
    const S length = std::sqrt(block.sum(width, [&](Index i) { return row[i] * row[i]; }));
    const S scale = g[o] / length;
    block.for_each(width, [&](Index i) { y[o * width + i] = row[i] * scale; });
    if (block.rank == 0) norm[o] = length;
  });
}

/// dv_o (+)= g_o / ||v_o|| (dy_o - u_o (u_o . dy_o)), u_o = v_o / ||v_o||.
template <class S>
void weight_norm_vjp_v(Cuda<S>, Index rows, Index width, const S* v, const S* g, const S* norm,
                       const S* dy, S* dv, bool accumulate) {
  cuda::for_each_team<cuda::threads>(rows, [=] __device__(Index o, cuda::Block block) {
    const S *row = v + o * width, *c = dy + o * width;
    const S scale = g[o] / norm[o];
    const S along = block.sum(width, [&](Index i) { return row[i] * c[i]; }) / (norm[o] * norm[o]);
    block.for_each(width, [&](Index i) {
      cuda::put(dv[o * width + i], scale * (c[i] - row[i] * along), accumulate);
    });
  });
}

/// dg_o (+)= u_o . dy_o.
template <class S>
void weight_norm_vjp_g(Cuda<S>, Index rows, Index width, const S* v, const S* norm, const S* dy,
                       S* dg, bool accumulate) {
  cuda::for_each_team<cuda::threads>(rows, [=] __device__(Index o, cuda::Block block) {
    const S sum = block.sum(width, [&](Index i) { return v[o * width + i] * dy[o * width + i]; });
    if (block.rank == 0) cuda::put(dg[o], sum / norm[o], accumulate);
  });
}

}  // namespace deq
