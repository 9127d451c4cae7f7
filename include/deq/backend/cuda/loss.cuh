// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <limits>

#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/cuda/pointwise.cuh>
#include <deq/backend/cuda/team.cuh>

namespace deq {

namespace cuda {

/// The largest number of a warp, in every thread of it.
template <class S>
__device__ S warp_max(S v) {
#pragma unroll
  for (int distance = warp_threads / 2; distance > 0; distance /= 2) {
    const S other = __shfl_xor_sync(0xffffffffu, v, distance);
    v = other > v ? other : v;
  }
  return v;
}

}  // namespace cuda

/// y = x - log sum exp(x) in every row; the largest x is taken out first, so nothing overflows.
template <class S>
void log_softmax_forward(Cuda<S>, Index rows, Index width, const S* x, S* y) {
  cuda::for_each_team<cuda::warp_threads>(rows, [=] __device__(Index row, cuda::Warp warp) {
    const S* in = x + row * width;
    S* out = y + row * width;
    S top = -std::numeric_limits<S>::infinity();
    warp.for_each(width, [&](Index i) { top = in[i] > top ? in[i] : top; });
    top = cuda::warp_max(top);
    const S log_sum = std::log(warp.sum(width, [&](Index i) { return std::exp(in[i] - top); }));
    warp.for_each(width, [&](Index i) { out[i] = in[i] - top - log_sum; });
  });
}

/// dx (+)= dy - exp(y) sum(dy) in every row.
template <class S>
void log_softmax_vjp(Cuda<S>, Index rows, Index width, const S* y, const S* dy, S* dx,
                     bool accumulate) {
  cuda::for_each_team<cuda::warp_threads>(rows, [=] __device__(Index row, cuda::Warp warp) {
    const S *out = y + row * width, *c = dy + row * width;
    const S total = warp.sum(width, [&](Index i) { return c[i]; });
    warp.for_each(width, [&](Index i) {
      cuda::put(dx[row * width + i], c[i] - std::exp(out[i]) * total, accumulate);
    });
  });
}

/// dx (+)= y (dy - sum(dy y)) in every row.
template <class S>
void softmax_vjp(Cuda<S>, Index rows, Index width, const S* y, const S* dy, S* dx,
                 bool accumulate) {
  cuda::for_each_team<cuda::warp_threads>(rows, [=] __device__(Index row, cuda::Warp warp) {
    const S *out = y + row * width, *c = dy + row * width;
    const S along = warp.sum(width, [&](Index i) { return out[i] * c[i]; });
    warp.for_each(width, [&](Index i) {
      cuda::put(dx[row * width + i], out[i] * (c[i] - along), accumulate);
    });
  });
}

/// *loss = -mean over the rows of log_p[row, label].
template <class S>
void cross_entropy_forward(Cuda<S>, Index rows, Index width, const S* log_p, const Index* label,
                           S* loss) {
  cuda::for_each_team<cuda::threads>(1, [=] __device__(Index, cuda::Team<cuda::threads> team) {
    const S sum = team.sum(rows, [&](Index n) { return log_p[n * width + label[n]]; });
    if (team.rank == 0) *loss = -sum / static_cast<S>(rows);
  });
}

/// dx (+)= *dloss / rows (p - onehot(label)), p = exp(log_p).
template <class S>
void cross_entropy_vjp(Cuda<S>, Index rows, Index width, const S* log_p, const Index* label,
                       const S* dloss, S* dx, bool accumulate) {
  cuda::for_each_index(rows * width, [=] __device__(Index i) {
    const S hot = i % width == label[i / width] ? S(1) : S(0);
    cuda::put(dx[i], *dloss / static_cast<S>(rows) * (std::exp(log_p[i]) - hot), accumulate);
  });
}

}  // namespace deq
