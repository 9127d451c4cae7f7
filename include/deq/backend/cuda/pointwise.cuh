// SPDX-License-Identifier: MIT
// What kernels do with one number, or with a few neighbours.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>
#include <utility>

#include <deq/backend/cuda/runtime.cuh>
#include <deq/backend/geometry.hpp>
#include <deq/core/bfloat16.hpp>

namespace deq::cuda {

/// to (+)= value. What is overwritten is not read.
template <class X, class S>
__device__ void put(X& to, S value, bool accumulate) {
  to = X(accumulate ? static_cast<S>(to) + value : value);
}

/// Two numbers rounded to bfloat16, the first one in the lower half.
__device__ inline unsigned bfloat16_pair(float first, float second) {
#ifdef __CUDACC__
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return deq_emulation::pack_bf16(first, second);
#endif
}

/// Neighbouring numbers that one access moves.
template <class T, int n>
struct alignas(n * sizeof(T)) Pack {
  T word[n];
};
/// In registers they are pairs.
template <int n>
  requires(n > 1)
struct alignas(n * sizeof(Bfloat16)) Pack<Bfloat16, n> {
  unsigned pair[n / 2];
};
template <class T>
using Quad = Pack<T, 4>;

/// The numbers of a pack for arithmetic, and the other way, as they are stored.
template <class S, class X, int n>
__device__ Pack<S, n> as(const Pack<X, n>& x) {
  if constexpr (std::is_same_v<S, X>) {
    return x;
  } else {
    Pack<S, n> y;
    if constexpr (n == 1) {
      y.word[0] = S(static_cast<float>(x.word[0]));
    } else if constexpr (std::is_same_v<X, Bfloat16>) {
#pragma unroll
      for (int i = 0; i < n; ++i)
        y.word[i] = std::bit_cast<float>(i % 2 ? x.pair[i / 2] & 0xffff0000u : x.pair[i / 2] << 16);
    } else {
#pragma unroll
      for (int i = 0; i < n; i += 2)
        y.pair[i / 2] =
            bfloat16_pair(static_cast<float>(x.word[i]), static_cast<float>(x.word[i + 1]));
    }
    return y;
  }
}

template <int n, class T>
__device__ Pack<T, n> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, n>*>(from);
}
template <int n, class T>
__device__ void store_pack(T* to, const Pack<T, n>& x) {
  *reinterpret_cast<Pack<T, n>*>(to) = x;
}
/// n numbers for arithmetic in S.
template <class S, int n, class X>
__device__ Pack<S, n> load_as(const X* from) {
  return as<S>(load_pack<n>(from));
}
/// x += before.
template <int n, class S>
__device__ void add_to(Pack<S, n>& x, const Pack<S, n>& before) {
#pragma unroll
  for (int i = 0; i < n; ++i) x.word[i] = before.word[i] + x.word[i];
}
/// The same as for one number.
template <int n, class X, class S>
__device__ void put(X* to, Pack<S, n> x, bool accumulate) {
  if (accumulate) add_to(x, load_as<S, n>(to));
  store_pack(to, as<X>(x));
}
/// Nothing for a cotangent that nobody wants.
template <int n, class X, class S>
__device__ void put(const NhwcSink<X>& sink, Index place, const Pack<S, n>& x) {
  if (sink.data) put(sink.data + place, x, sink.accumulate);
}
/// Whether numbers that come in packs of n from these places on can be moved by packs; a null
/// pointer has none that could not.
template <int n, class... T>
bool in_packs(Index extent, const T*... data) {
  return extent % n == 0 &&
         ((reinterpret_cast<std::uintptr_t>(data) % sizeof(Pack<T, n>) == 0) && ...);
}

/// Numbers that one access moves at best.
template <class... T>
inline constexpr int best_pack = ((sizeof(T) == sizeof(Bfloat16)) && ...) ? 8 : 4;

/// call(integral constant, `best` or 1): how many of them a thread takes at a time.
template <int best, class Call, class... T>
void with_packs_of(Index extent, Call&& call, const T*... data) {
  if (in_packs<best>(extent, data...))
    call(std::integral_constant<int, best>{});
  else
    call(std::integral_constant<int, 1>{});
}
template <class Call, class... T>
void with_packs(Index extent, Call&& call, const T*... data) {
  with_packs_of<best_pack<T...>>(extent, std::forward<Call>(call), data...);
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
