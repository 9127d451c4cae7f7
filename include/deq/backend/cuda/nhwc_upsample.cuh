// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/cuda/pointwise.cuh>
#include <deq/backend/geometry.hpp>

namespace deq {

namespace cuda {

/// Numbers that a thread reads before it writes any of them.
inline constexpr int numbers_at_once = 8;

/// The large numbers that a small one stands for.
class Square {
 public:
  __device__ Square(const NhwcUpsampling& g, Index small)
      : factor_(g.factor), channels_(g.channels), row_(g.width * g.factor * g.channels) {
    const Index pixel = small / g.channels, line = pixel / g.width, x = pixel % g.width;
    first_ = line * g.factor * row_ + x * g.factor * g.channels + small % g.channels;
  }

  /// store(place, load(place)) for each of them; several loads come before their stores, which may
  /// be to the same memory.
  template <class S, class Load, class Store>
  __device__ void pass(Load load, Store store) const {
    const Index size = factor_ * factor_;
    for (Index start = 0; start < size; start += numbers_at_once) {
      S value[numbers_at_once];
#pragma unroll
      for (int k = 0; k < numbers_at_once; ++k)
        if (start + k < size) value[k] = load(place(start + k));
#pragma unroll
      for (int k = 0; k < numbers_at_once; ++k)
        if (start + k < size) store(place(start + k), value[k]);
    }
  }

 private:
  __device__ Index place(Index i) const {
    return first_ + i / factor_ * row_ + i % factor_ * channels_;
  }

  Index factor_, channels_, row_, first_;
};

/// body(i, square) for every small number i.
template <class Body>
void for_each_square(const NhwcUpsampling& g, Body body) {
  const RowSet samples = RowSet::of(g.samples);
  const Index size = g.height * g.width * g.channels;
  for_each_index(g.samples * size, [=] __device__(Index i) {
    if (samples.contains(i / size)) body(i, Square(g, i));
  });
}

}  // namespace cuda

/// y = relu(large + small, every small pixel repeated to a square).
template <class S>
void nhwc_upsample_add(Cuda<S>, const NhwcUpsampling& g, const S* large, const S* small, S* y) {
  cuda::for_each_square(g, [=] __device__(Index i, const cuda::Square& square) {
    const S repeated = small[i];
    square.pass<S>([&](Index place) { return large[place] + repeated; },
                   [&](Index place, S v) { y[place] = g.relu ? cuda::rectified(v) : v; });
  });
}
/// The cotangents of both, from y and its cotangent.
template <class S>
void nhwc_upsample_add_vjp(Cuda<S>, const NhwcUpsampling& g, const S* y, const S* cotangent,
                           NhwcSink<S> of_large, NhwcSink<S> of_small) {
  cuda::for_each_square(g, [=] __device__(Index i, const cuda::Square& square) {
    S sum = 0;
    square.pass<S>(
        [&](Index place) {
          return g.relu ? cuda::before_relu(cotangent[place], y[place]) : cotangent[place];
        },
        [&](Index place, S d) {
          cuda::put(of_large, place, d);
          sum += d;
        });
    cuda::put(of_small, i, sum);
  });
}

}  // namespace deq
