// SPDX-License-Identifier: MIT
// What kernels do with one number, or with a few neighbours.
#pragma once

#include <cstdint>
#include <type_traits>

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

/// Neighbouring numbers that one access moves.
template <class T, int n>
struct alignas(n * sizeof(T)) Pack {
  T word[n];
};
template <class T>
using Quad = Pack<T, 4>;

template <int n, class T>
__device__ Pack<T, n> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, n>*>(from);
}
template <int n, class T>
__device__ void store_pack(T* to, const Pack<T, n>& x) {
  *reinterpret_cast<Pack<T, n>*>(to) = x;
}
/// The same as for one number.
template <int n, class T>
__device__ void put(T* to, Pack<T, n> x, bool accumulate) {
  if (accumulate) {
    const Pack<T, n> before = load_pack<n>(to);
#pragma unroll
    for (int i = 0; i < n; ++i) x.word[i] = before.word[i] + x.word[i];
  }
  store_pack(to, x);
}
template <int n, class T>
__device__ void put(const NhwcSink<T>& sink, Index place, const Pack<T, n>& x) {
  if (sink.data) put(sink.data + place, x, sink.accumulate);
}
/// Whether numbers that come in fours from these places on can be moved by fours; a null pointer
/// has none that could not.
template <class... T>
bool in_quads(Index extent, const T*... data) {
  return extent % 4 == 0 &&
         ((reinterpret_cast<std::uintptr_t>(data) % sizeof(Quad<T>) == 0) && ...);
}

/// call(integral constant 4 or 1): how many of them a thread takes at a time.
template <class Call, class... T>
void with_packs(Index extent, Call&& call, const T*... data) {
  if (in_quads(extent, data...))
    call(std::integral_constant<int, 4>{});
  else
    call(std::integral_constant<int, 1>{});
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
