// SPDX-License-Identifier: MIT
// Vectors of the machine's width, by the vector extensions of GCC and Clang: AVX-512, AVX, SSE and
// NEON from one source, without an instruction of assembler.
#pragma once

#include <cmath>
#include <cstring>
#include <utility>

#include <deq/core/types.hpp>

/// For functions, and for lambdas in loops: whoever holds vectors in registers must not be called.
#define DEQ_INLINE __attribute__((always_inline))

namespace deq::detail {

#if defined(__AVX512F__)
inline constexpr int simd_bytes = 64, simd_registers = 32;
#elif defined(__AVX__)
inline constexpr int simd_bytes = 32, simd_registers = 16;
#elif defined(__aarch64__)
inline constexpr int simd_bytes = 16, simd_registers = 32;
#else
inline constexpr int simd_bytes = 16, simd_registers = 16;
#endif

template <class S>
struct SimdOf {
  typedef S type __attribute__((vector_size(simd_bytes)));
};
/// simd_width<S> numbers that one instruction works on; has the arithmetic operators.
template <class S>
using Simd = typename SimdOf<S>::type;
template <class S>
inline constexpr Index simd_width = simd_bytes / static_cast<Index>(sizeof(S));

/// Vectors that hold n numbers.
template <class S>
constexpr Index simd_count(Index n) {
  return (n + simd_width<S> - 1) / simd_width<S>;
}

template <class S>
DEQ_INLINE inline Simd<S> load(const S* from) {
  Simd<S> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class S>
DEQ_INLINE inline void store(S* to, const Simd<S>& v) {
  std::memcpy(to, &v, sizeof v);
}
/// How many numbers of a vector are in memory; the others are 0. For all and for half of them it is
/// a single instruction, otherwise a call: it is rare, and code for it would be everywhere.
struct Whole {};
struct Half {};
struct First {
  Index n;
};
template <class S>
DEQ_INLINE inline Simd<S> load(const S* from, Whole) {
  return load(from);
}
template <class S>
DEQ_INLINE inline void store(S* to, const Simd<S>& v, Whole) {
  store(to, v);
}
// Shuffles, since a vector put together in memory would wait for the stores.
template <class S>
DEQ_INLINE inline Simd<S> load(const S* from, Half) {
#ifdef __CUDACC__  // whose front end does not expand packs in builtins
  Simd<S> all{};
  std::memcpy(&all, from, sizeof all / 2);
  return all;
#else
  typedef S HalfSimd __attribute__((vector_size(simd_bytes / 2)));
  HalfSimd v;
  std::memcpy(&v, from, sizeof v);
  return [&]<int... I>(std::integer_sequence<int, I...>) DEQ_INLINE {
    return __builtin_shufflevector(v, HalfSimd{}, I...);
  }
  (std::make_integer_sequence<int, simd_width<S>>{});
#endif
}
template <class S>
DEQ_INLINE inline void store(S* to, const Simd<S>& v, Half) {
#ifdef __CUDACC__
  std::memcpy(to, &v, sizeof v / 2);
#else
  const auto half = [&]<int... I>(std::integer_sequence<int, I...>) DEQ_INLINE {
    return __builtin_shufflevector(v, v, I...);
  }
  (std::make_integer_sequence<int, simd_width<S> / 2>{});
  std::memcpy(to, &half, sizeof half);
#endif
}
template <class S>
[[gnu::noinline]] Simd<S> load(const S* from, First few) {
  Simd<S> v{};
  for (Index i = 0; i < few.n; ++i) v[i] = from[i];
  return v;
}
template <class S>
[[gnu::noinline]] void store(S* to, const Simd<S>& v, First few) {
  for (Index i = 0; i < few.n; ++i) to[i] = v[i];
}
/// The same, decided at run time.
template <class S>
DEQ_INLINE inline Simd<S> load(const S* from, Index n) {
  if (n >= simd_width<S>) return load(from);
  return 2 * n == simd_width<S> ? load(from, Half{}) : load(from, First{n});
}
template <class S>
DEQ_INLINE inline void store(S* to, const Simd<S>& v, Index n) {
  if (n >= simd_width<S>) return store(to, v);
  2 * n == simd_width<S> ? store(to, v, Half{}) : store(to, v, First{n});
}
/// body(Whole, Half or First) for a vector of which n numbers are there, or more: for code that
/// loads or stores often.
template <class S, class Body>
DEQ_INLINE inline void with_width(Index n, Body&& body) {
  if (n >= simd_width<S>)
    body(Whole{});
  else if (2 * n == simd_width<S>)
    body(Half{});
  else
    body(First{n});
}

/// body(first, Whole) for every vector of n numbers, and body(first, Half or First) for what is
/// left.
template <class S, class Body>
DEQ_INLINE inline void for_each_vector(Index n, Body&& body) {
  Index first = 0;
  for (; first + simd_width<S> <= n; first += simd_width<S>) body(first, Whole{});
  if (first < n) with_width<S>(n - first, [&](auto width) DEQ_INLINE { body(first, width); });
}

template <class S>
DEQ_INLINE inline Simd<S> broadcast(S x) {
  return x - Simd<S>{};
}

/// a b + c, rounded once wherever vectors are: left to itself a compiler does so in one loop, and
/// not in the next.
template <class S>
DEQ_INLINE inline S multiply_add(S a, S b, S c) {
#if defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

/// Two numbers in turns, p[0], p[1], p[0], p[1] and so on; of a type of four bytes.
template <class S>
DEQ_INLINE inline Simd<S> broadcast_pair(const S* p) {
  typedef long long Wide __attribute__((vector_size(simd_bytes)));
  long long two;
  static_assert(sizeof two == 2 * sizeof(S));
  std::memcpy(&two, p, sizeof two);
  const Wide wide = Wide{} + two;
  Simd<S> v;
  std::memcpy(&v, &wide, sizeof v);
  return v;
}
/// Every two neighbours of p and q added, the sums from p and from q two by two.
template <class S>
DEQ_INLINE inline Simd<S> fold(const Simd<S>& p, const Simd<S>& q) {
#ifdef __CUDACC__
  Simd<S> sums{};
  for (int i = 0; i < static_cast<int>(simd_width<S>); ++i) {
    const Simd<S>& from = i % 4 < 2 ? p : q;
    const int k = i / 4 * 4 + i % 2 * 2;
    sums[i] = from[k] + from[k + 1];
  }
  return sums;
#else
  return [&]<int... I>(std::integer_sequence<int, I...>) DEQ_INLINE {
    constexpr int n = sizeof...(I);
    return __builtin_shufflevector(p, q, ((I % 4 < 2 ? 0 : n) + I / 4 * 4 + I % 2 * 2)...) +
           __builtin_shufflevector(p, q, ((I % 4 < 2 ? 0 : n) + I / 4 * 4 + I % 2 * 2 + 1)...);
  }
  (std::make_integer_sequence<int, simd_width<S>>{});
#endif
}
/// The first two numbers of every 128 bits one after the other, twice.
template <class S>
DEQ_INLINE inline Simd<S> first_halves(const Simd<S>& v) {
#ifdef __CUDACC__
  constexpr int half = static_cast<int>(simd_width<S>) / 2;
  Simd<S> firsts{};
  for (int i = 0; i < 2 * half; ++i) firsts[i] = v[i % half / 2 * 4 + i % 2];
  return firsts;
#else
  return [&]<int... I>(std::integer_sequence<int, I...>) DEQ_INLINE {
    constexpr int n = sizeof...(I);
    return __builtin_shufflevector(v, v, (I % (n / 2) / 2 * 4 + I % 2)...);
  }
  (std::make_integer_sequence<int, simd_width<S>>{});
#endif
}

/// v[k], v[k + 1], ..., and then what was before.
template <int k, class S>
DEQ_INLINE inline Simd<S> turned(const Simd<S>& v) {
#ifdef __CUDACC__
  constexpr int n = static_cast<int>(simd_width<S>);
  Simd<S> w{};
  for (int i = 0; i < n; ++i) w[i] = v[(i + k) % n];
  return w;
#else
  return [&]<int... I>(std::integer_sequence<int, I...>) DEQ_INLINE {
    return __builtin_shufflevector(v, v, ((I + k) % sizeof...(I))...);
  }
  (std::make_integer_sequence<int, simd_width<S>>{});
#endif
}
/// sums[v] += the sum of r[v], for one to four vectors; of the same bits, however many they are.
template <class S, int N>
DEQ_INLINE inline void add_sums(const Simd<S> (&r)[N], S* sums) {
  static_assert(N >= 1 && N <= 4);
  constexpr int n = static_cast<int>(simd_width<S>);
  if constexpr (n < 4) {
    for (int v = 0; v < N; ++v)
      for (int l = 0; l < n; ++l) sums[v] += r[v][l];
  } else {
    constexpr int second = N > 1 ? 1 : 0, third = N > 2 ? 2 : 0;
    Simd<S> fours = fold<S>(fold<S>(r[0], r[second]), fold<S>(r[third], r[N - 1]));
    if constexpr (n >= 16) fours += turned<8, S>(fours);
    if constexpr (n >= 8) fours += turned<4, S>(fours);
    for (int v = 0; v < N; ++v) sums[v] += fours[v];
  }
}

/// Has v in a register from here on. g++ otherwise reads a vector from memory again at every use,
/// where it may, which costs a kernel up to half of its speed.
template <class V>
DEQ_INLINE inline void hold(V& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

/// body(0), body(1), ..., body(N - 1), each index a constant of its own, so that an array indexed
/// by it lives in registers.
template <int N, class Body>
DEQ_INLINE inline void unroll(Body&& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) DEQ_INLINE {
    (body(std::integral_constant<int, I>{}), ...);
  }
  (std::make_integer_sequence<int, N>{});
}

}  // namespace deq::detail
