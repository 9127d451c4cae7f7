// SPDX-License-Identifier: MIT
// What kernels do with one number.
#pragma once

#include <deq/backend/cuda/runtime.cuh>
#include <deq/backend/geometry.hpp>

namespace deq::cuda {

/// to (+)= value. What is overwritten is not read.
template <class S>
__device__ void put(S& to, S value, bool accumulate) {
  to = accumulate ? to + value : value;
}
/// Nothing for a cotangent that nobody wants.
template <class S>
__device__ void put(const NhwcSink<S>& sink, Index place, S value) {
  if (sink.data) put(sink.data[place], value, sink.accumulate);
}

/// What is no longer positive; NaN stays NaN, so that it is seen.
template <class S>
__device__ S rectified(S y) {
  return y < S(0) ? S(0) : y;
}
/// d, the cotangent of what the relu was applied to.
template <class S>
__device__ S before_relu(S cotangent, S y) {
  return y > S(0) ? cotangent : S(0);
}

}  // namespace deq::cuda
